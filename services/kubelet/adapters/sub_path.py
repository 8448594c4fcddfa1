"""Bind a path within a volume where an engine can take it, whatever a pod does meanwhile.

Pods write in volumes, and may swap a folder for a link to the host's files between a
look and a mount (CVE-2017-1002101, CVE-2021-25741). So the path is opened once, by
openat2(2) beneath the volume's root, and what was opened is bound to a place below the
pod's folder that only root can change; the engine gets that place.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from services.kubelet.adapters import mounting

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08
_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root: int, path: str) -> int:
    """Open a path (O_PATH) that must lie beneath an open folder, links included. Raises `OSError`."""
    how = _How(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    found = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(root),
        os.fsencode(path or "."),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if found < 0:
        number = ctypes.get_errno()
        what = "leads out of the volume" if number == errno.EXDEV else os.strerror(number)
        raise OSError(number, what, path)
    return int(found)


def open_or_make(root: int, path: str) -> int:
    """Open a path beneath a folder; missing folders are made with that folder's mode and owner."""
    try:
        return open_beneath(root, path)
    except FileNotFoundError:
        pass
    own = os.fstat(root)
    parts = path.split("/")
    for count in range(len(parts)):
        parent = open_beneath(root, "/".join(parts[:count]))
        try:
            with suppress(FileExistsError):
                os.mkdir(parts[count], 0o700, dir_fd=parent)
                _take_over(parent, parts[count], own)
        finally:
            os.close(parent)
    return open_beneath(root, path)


def _take_over(parent: int, name: str, own: os.stat_result) -> None:
    """Give a new folder the mode and owner of the volume's root."""
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fchown(made, own.st_uid, own.st_gid)
        os.fchmod(made, stat.S_IMODE(own.st_mode))
    finally:
        os.close(made)


def bind(root: Path, path: str, place: Path, *, make: bool) -> None:
    """Bind `path` of the volume at `root` to `place`. May be repeated. Raises `OSError`.

    What is bound there already stays when it is the same. With `make`, missing folders are made.
    """
    volume = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        source = open_or_make(volume, path) if make else open_beneath(volume, path)
    finally:
        os.close(volume)
    try:
        if not _is_bound(source, place):
            mounting.unmount(place)
            _make_place(source, place)
            mounting.bind(source, place)
    finally:
        os.close(source)


def _is_bound(source: int, place: Path) -> bool:
    if str(place) not in mounting.mounts_below(place.parent):
        return False
    return os.path.samestat(os.fstat(source), place.stat())


def _make_place(source: int, place: Path) -> None:
    """Make what can be mounted on: a folder for a folder, a file for anything else."""
    place.parent.mkdir(0o750, parents=True, exist_ok=True)
    if stat.S_ISDIR(os.fstat(source).st_mode):
        if place.is_file():
            place.unlink()
        place.mkdir(0o750, exist_ok=True)
    else:
        if place.is_dir():
            place.rmdir()
        place.touch(0o640)
