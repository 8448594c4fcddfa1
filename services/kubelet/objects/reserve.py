"""Space kept back, so that a full disk still lets pods be deleted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 1 << 20
# Less than this free is a full disk: one change with its journal may need as much.
ROOM_BYTES = 256 << 10


class Reserve:
    """One file whose blocks are allocated."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> bool:
        """Make sure that the reserve is there; False while the disk has no room for it."""
        with suppress(OSError):
            if self._path.stat().st_size >= RESERVE_BYTES:
                return True
        return _allocate(self._path, RESERVE_BYTES)

    def release(self) -> bool:
        """Give the space back to the disk; False when there is none left to give."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def room(self, *, prove: bool) -> bool:
        """Tell whether the disk has room. `prove` takes some and gives it back: a quota shows only then."""
        try:
            found = os.statvfs(self._path.parent)
        except OSError:
            return False
        if found.f_bavail * found.f_frsize < ROOM_BYTES:
            return False
        trial = self._path.with_name(f"{self._path.name}.trial")
        return not prove or (_allocate(trial, ROOM_BYTES) and Reserve(trial).release())


def _allocate(path: Path, size_bytes: int) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)
    except OSError:
        with suppress(OSError):
            path.unlink()
        return False
    return True
