"""One kubelet for one state directory: a lock file, held for the life of the process."""

from __future__ import annotations

import os
from pathlib import Path

from services.common.errors import Code
from services.common.owners import LockTakenError, take_lock
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
            self._descriptor = take_lock(self._path)
        except OSError as error:
            raise KubeletError(
                f"Cannot use the state directory {self._path.parent}: {error.strerror}",
                code=Code.FAILED_PRECONDITION,
                reason="STATE_UNUSABLE",
                metadata={"path": str(self._path.parent)},
            ) from error
        except LockTakenError as error:
            raise KubeletError(
                f"Another kubelet uses the state directory {self._path.parent}: process {error.owner}. "
                "Stop it, or set another state_directory",
                code=Code.FAILED_PRECONDITION,
                reason="STATE_IN_USE",
                metadata={"path": str(self._path.parent), "pid": error.owner},
            ) from error

    def release(self) -> None:
        """Let the lock go. May be repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
