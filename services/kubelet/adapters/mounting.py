"""mount(2) and what goes with it, for the calling thread. Source: mount(2), umount2(2), setns(2), proc(5).

Nothing here follows a link at the last part of a path: whoever mounts or unmounts gives a
path whose parents only root can change, or a descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC = 0x2, 0x4, 0x1000, 0x4000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_CAP_SYS_ADMIN = 21
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *values: object) -> None:
    """Call the C library. Raises `OSError`."""
    if getattr(_libc, name)(*values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def may_mount() -> bool:
    """Tell whether this thread has CAP_SYS_ADMIN."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def enter(namespace: int) -> None:
    """Move this thread alone into a mount namespace, for good. Raises `OSError`."""
    _call("unshare", _CLONE_FS)
    _call("setns", namespace, _CLONE_NEWNS)


def mount_tmpfs(path: Path, *, mode: int, size_bytes: int = 0) -> None:
    """Mount a tmpfs, kept out of swap where the kernel can (6.3 and newer). Raises `OSError`."""
    options = f"mode={mode:o}" + (f",size={size_bytes}" if size_bytes else "")
    try:
        _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"{options},noswap")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def bind(source: int, path: Path) -> None:
    """Bind what an open descriptor means onto `path`, with the mounts below it. Raises `OSError`."""
    _mount(f"/proc/self/fd/{source}", path, "", _MS_BIND | _MS_REC, "")


def _mount(source: str, path: Path, kind: str, flags: int, options: str) -> None:
    _call(
        "mount",
        os.fsencode(source),
        os.fsencode(path),
        os.fsencode(kind),
        ctypes.c_ulong(flags),
        os.fsencode(options),
    )


def unmount(path: Path) -> None:
    """Take a mount away, also one that is in use. One that is not there is no error. Raises `OSError`."""
    try:
        _call("umount2", os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW)
    except OSError as error:
        # EINVAL: nothing is mounted there.
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def mounts_below(folder: Path) -> list[str]:
    """Return the paths below a folder on which something is mounted, in the order of mounting."""
    lines = Path("/proc/thread-self/mountinfo").read_text(errors="surrogateescape").splitlines()
    paths = [_unescaped(line.split()[4]) for line in lines]
    return [path for path in paths if path.startswith(f"{folder}/")]


def _unescaped(path: str) -> str:
    """Read a path of mountinfo, in which blanks and backslashes are octal."""
    parts = path.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])
