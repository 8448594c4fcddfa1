"""Removes cgroups that a killed engine left behind of containers that are gone. Blocks, but never for long.

An engine that is killed amid a stop or a removal forgets a container whose cgroups are still there, and
nobody ever removes them: each costs kernel memory and is read by whoever looks at all cgroups. One that
holds a process, or a cgroup of somebody's, is left alone: the kernel refuses to remove it.

Source: cgroups(7), rmdir(2). With the systemd driver, systemd removes them itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# Where the engine puts containers that name no parent.
ENGINE_PARENT = "docker"


def remove_cgroups(container_id: str, parents: Iterable[str], root: Path = Path("/sys/fs/cgroup")) -> int:
    """Remove the empty cgroups of a container below these parents in every tree; returns how many went.

    `container_id` is the full id, 64 hex digits; anything else names none of the engine's cgroups.
    """
    if len(container_id) != 64 or not container_id.isalnum():
        return 0
    removed = 0
    trees = [root, *_trees(root)]
    for parent in parents:
        for tree in trees:
            try:
                (tree / parent.strip("/") / container_id).rmdir()
                removed += 1
            except OSError:
                continue  # There is none, as nearly always, or it is in use.
    return removed


def _trees(root: Path) -> list[Path]:
    """Return the controllers' trees of cgroup v1; in v2 they are one."""
    if (root / "cgroup.controllers").exists():
        return []
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
