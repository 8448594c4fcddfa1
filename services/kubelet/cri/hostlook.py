"""What the host and the engine allow, looked at once when the server starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.kubelet.cri import engineapi, security
from services.kubelet.cri.convert import Host
from services.kubelet.cri.security import Confinement

_RECURSIVE_KERNEL = (5, 12)
_RECENT_API = (1, 42)
# As runc passes devices on to privileged containers.
_NO_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})


def look(owner: str, pause_image: str, api_version: str, info: Mapping[str, Any]) -> Host:
    """Return what is allowed, by what the engine says of itself and by what `/proc` and `/dev` show."""
    api = engineapi.parsed(api_version)
    # The host's first process has what the engine may have.
    bounding_set = status_number(Path("/proc/1/status"), "CapBnd")
    grantable = security.grantable(bounding_set, recent_engine=api >= _RECENT_API)
    systems = [str(option) for option in info.get("SecurityOptions") or ()]
    return Host(
        owner,
        pause_image,
        negative_oom_scores=grantable is None,
        recursive_read_only=engineapi.available(engineapi.RECURSIVE_READ_ONLY, api_version)
        and _kernel() >= _RECURSIVE_KERNEL,
        confinement=Confinement(
            grantable,
            apparmor=any("name=apparmor" in option for option in systems),
            selinux=any("name=selinux" in option for option in systems),
            devices=tuple(devices()),
        ),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        default_runtime=str(info.get("DefaultRuntime") or ""),
    )


def status_fields(path: Path) -> dict[str, list[str]]:
    """Read a file such as `/proc/PID/status`; {} when there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def status_number(path: Path, name: str) -> int:
    """Read a hexadecimal number of such a file; 0 when it is not there."""
    values = status_fields(path).get(name) or ["0"]
    return int(values[0], 16)


def devices(root: Path = Path("/dev")) -> Iterator[str]:
    """List the host's devices that a privileged container gets."""
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_symlink() or entry.name in _NO_DEVICES or entry.name == "console":
            continue
        if entry.is_dir():
            yield from devices(Path(entry.path))
        elif Path(entry.path).is_block_device() or Path(entry.path).is_char_device():
            yield entry.path


def _kernel() -> tuple[int, ...]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)
