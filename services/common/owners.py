"""Who holds what we want: lock files with a process id in them, and listeners on TCP ports.

A second service must name the first, so that whoever started it knows what to stop.
Source: flock(2), proc(5).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from services.common.errors import Code, TripodError

UNKNOWN = "unknown"
_LISTEN = "0A"


class LockTakenError(Exception):
    """Another process holds the lock; `owner` is its process id, or `unknown`."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


def take_lock(path: Path) -> int:
    """Lock a file for the life of this process and write our id in it. The caller closes what is returned.

    Raises `LockTakenError`, `OSError`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or UNKNOWN
        os.close(descriptor)
        raise LockTakenError(owner) from error
    # The lock is what counts; a full disk may have no room for the owner's name.
    with suppress(OSError):
        os.pwrite(descriptor, f"{os.getpid():<10}\n".encode(), 0)
        os.ftruncate(descriptor, 11)
    return descriptor


def address_in_use(address: str) -> TripodError:
    """Make the error of an address that cannot be listened on, with the process that listens there."""
    port = address.rpartition(":")[2]
    owner = listener(int(port)) if port.isdigit() else UNKNOWN
    why = "is it in use by another process?" if owner == UNKNOWN else f"process {owner} listens there already"
    return TripodError(
        f"Cannot listen on {address}: {why}",
        code=Code.FAILED_PRECONDITION,
        reason="ADDRESS_IN_USE",
        metadata={"address": address, "pid": owner},
    )


def listener(port: int, proc: Path = Path("/proc")) -> str:
    """Return the id of the process that listens on a TCP port; `unknown` when it cannot be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return UNKNOWN
    for folder in proc.iterdir():
        if folder.name.isdigit() and sockets & _open_files(folder / "fd"):
            return folder.name
    return UNKNOWN


def _listening(port: int, proc: Path) -> list[str]:
    found = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "self/net" / name).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    found.append(words[9])
    return found


def _open_files(folder: Path) -> set[str]:
    found = set()
    with suppress(OSError):
        for link in folder.iterdir():
            with suppress(OSError):
                found.add(str(link.readlink()))
    return found
