"""One kubelet for one state directory: a lock file, held for the life of the process."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from services.common.errors import Code
from services.kubelet.errors import KubeletError


class StateClaim:
    """The right to use a state directory. Ends with `release` or with the process."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "kubelet.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `STATE_IN_USE` with the owner's process id, `STATE_UNUSABLE`."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise KubeletError(
                f"Cannot use the state directory {self._path.parent}: {error.strerror}",
                code=Code.FAILED_PRECONDITION,
                reason="STATE_UNUSABLE",
                metadata={"path": str(self._path.parent)},
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise KubeletError(
                f"Another kubelet uses the state directory {self._path.parent}: process {owner}. "
                "Stop it, or set another state_directory",
                code=Code.FAILED_PRECONDITION,
                reason="STATE_IN_USE",
                metadata={"path": str(self._path.parent), "pid": owner},
            ) from error
        self._descriptor = descriptor
        with suppress(OSError):
            # The lock is what counts; a full disk may have no room for the owner's name.
            os.pwrite(descriptor, f"{os.getpid():<10}\n".encode(), 0)
            os.ftruncate(descriptor, 11)

    def release(self) -> None:
        """Let the lock go. May be repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
