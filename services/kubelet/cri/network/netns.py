"""Network namespaces: held by a descriptor, kept under a path of their own, looked into.

A namespace is opened first and judged then: what is held cannot come to mean another one, a process id can.
Source: namespaces(7), setns(2), mount(2), proc(5).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.kubelet.cri.network import errors
from services.kubelet.cri.network.links import in_netns

_MS_BIND: Final = 0x1000
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
# linux/sockios.h, linux/if.h.
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_REQUEST: Final = struct.Struct("16sH14x")


@dataclass(frozen=True, slots=True)
class Netns:
    """A namespace under a path: the process that it was taken from, when that started, and its inode."""

    path: str
    pid: int
    started: int
    inode: int


@contextmanager
def open_netns(sandbox_id: str, pid: int) -> Iterator[int]:
    """Open the network namespace of a process; it then outlives the process. Refuses the host's.

    Raises `NetworkError` SANDBOX_NETNS_GONE, SANDBOX_NETNS_IS_THE_HOSTS.
    """
    try:
        netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as err:
        raise errors.netns_gone(sandbox_id, pid) from err
    try:
        if os.path.samestat(os.fstat(netns), Path("/proc/thread-self/ns/net").stat()):
            raise errors.netns_is_the_hosts(sandbox_id, pid)
        yield netns
    finally:
        os.close(netns)


def identify(netns: int, pid: int, path: Path) -> Netns:
    """Describe an open namespace of a process that will be kept at `path`."""
    return Netns(str(path), pid, started(pid), os.fstat(netns).st_ino)


def started(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot; 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text[text.rindex(")") + 2 :].split()[19])


def keep(netns: int, path: Path) -> None:
    """Mount an open namespace at `path`, in place of what was there. Raises `OSError`."""
    release(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    libc = ctypes.CDLL(None, use_errno=True)
    source = f"/proc/self/fd/{netns}".encode()
    if libc.mount(source, bytes(path), None, _MS_BIND, None) != 0:
        number = ctypes.get_errno()
        path.unlink(missing_ok=True)
        raise OSError(number, f"mount: {os.strerror(number)}", str(path))


def release(path: Path) -> None:
    """Unmount what is kept at `path` and remove it. May be repeated. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.umount2(bytes(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        pass
    path.unlink(missing_ok=True)


def usable(netns: Netns) -> bool:
    """Tell whether the path leads to the namespace, giving it its path again where only that was lost.

    The mounts of a container go with it: after a restart they must be made anew.
    """
    with suppress(OSError):
        if Path(netns.path).stat().st_ino == netns.inode and _is_namespace(Path(netns.path)):
            return True
    if not lives(netns):
        return False
    with suppress(OSError), suppress(errors.NetworkError), open_netns("", netns.pid) as held:
        if os.fstat(held).st_ino == netns.inode:
            keep(held, Path(netns.path))
            return True
    return False


def lives(netns: Netns) -> bool:
    """Tell whether the process is there, the same one, and still in this namespace."""
    try:
        inode = Path(f"/proc/{netns.pid}/ns/net").stat().st_ino
    except OSError:
        return False
    return inode == netns.inode and started(netns.pid) == netns.started


def has_link(netns: Netns, name: str) -> bool:
    """Tell whether the namespace of a living process has a link of that name. Raises `OSError`."""
    lines = Path(f"/proc/{netns.pid}/net/dev").read_text().splitlines()
    return any(line.partition(":")[0].strip() == name for line in lines)


def raise_loopback(netns: int) -> None:
    """Set `lo` up inside an open namespace. Raises `OSError`."""
    in_netns(netns, _raise_loopback)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, _REQUEST.pack(b"lo", 0))
        _, flags = _REQUEST.unpack(answer)
        fcntl.ioctl(asking, _SIOCSIFFLAGS, _REQUEST.pack(b"lo", flags | _IFF_UP))


def _is_namespace(path: Path) -> bool:
    # A file of nsfs is of no length; a leftover that we made to mount upon lies on the folder's device.
    found = path.stat()
    return stat.S_ISREG(found.st_mode) and found.st_dev != path.parent.stat().st_dev
