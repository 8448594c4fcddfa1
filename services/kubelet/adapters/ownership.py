"""Give the files of a volume to a group, whatever a pod puts in the way. Blocks.

Source: the kubelet's `volume_linux.go`. Nothing is followed: links are given away themselves, and every other
file is changed by a descriptor that was opened without following, so a pod that swaps names meanwhile gets no
file of the host's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_READ = 0o440
_WRITE = 0o660
_ENTER = 0o110


def give(root: Path, group: int, *, read_only: bool = False, on_root_mismatch: bool = False) -> None:
    """Make `group` the owner of all below `root`, let it in, and let new files be its own. May be repeated.

    With `on_root_mismatch` nothing is done when the root is as it should be: it is changed last, so a change
    that was cut short begins anew. Raises `OSError`.
    """
    if on_root_mismatch and _is_given(root, group, read_only=read_only):
        return
    for _, directories, files, folder in os.fwalk(root, follow_symlinks=False):
        for name in (*files, *directories):
            _give_entry(name, folder, group, read_only=read_only)
    _give_entry(str(root), None, group, read_only=read_only)


def _is_given(root: Path, group: int, *, read_only: bool) -> bool:
    found = root.lstat()
    wanted = _mask(found.st_mode, read_only=read_only)
    return found.st_gid == group and found.st_mode & wanted == wanted


def _mask(mode: int, *, read_only: bool) -> int:
    wanted = _READ if read_only else _WRITE
    return wanted | _ENTER | stat.S_ISGID if stat.S_ISDIR(mode) else wanted


def _give_entry(name: str, folder: int | None, group: int, *, read_only: bool) -> None:
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return  # It went while we looked.
    try:
        found = os.fstat(descriptor)
        if stat.S_ISLNK(found.st_mode):
            os.chown(name, -1, group, dir_fd=folder, follow_symlinks=False)
            return
        # The kernel takes no O_PATH descriptor for fchown and fchmod, but its name in /proc.
        place = Path(f"/proc/self/fd/{descriptor}")
        os.chown(place, -1, group)
        place.chmod(stat.S_IMODE(found.st_mode) | _mask(found.st_mode, read_only=read_only))
    finally:
        os.close(descriptor)
