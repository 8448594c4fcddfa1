"""Claim a path for a unix socket, so that no second server steals a live one.

grpcio removes a socket that exists and binds anew without a word. A lock file
beside the socket, held for the life of the process, prevents that.
"""

from __future__ import annotations

import os
from pathlib import Path

from services.common.errors import Code, TripodError
from services.common.owners import LockTakenError, take_lock

# sockaddr_un holds 107 bytes (unix(7)); grpcio refuses more than 105.
_PATH_LIMIT_BYTES = 105


class SocketClaim:
    """The right to serve one path. Ends with `release` or with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f"{path.name}.lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `SOCKET_IN_USE` with its owner's process id, `SOCKET_PATH_TOO_LONG`."""
        if len(os.fsencode(self.path)) > _PATH_LIMIT_BYTES:
            raise self._error("SOCKET_PATH_TOO_LONG", f"is longer than {_PATH_LIMIT_BYTES} bytes")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._descriptor = take_lock(self._lock)
        except LockTakenError as error:
            why = f"is served by another process: {error.owner}"
            raise self._error("SOCKET_IN_USE", why, pid=error.owner) from error

    def release(self) -> None:
        """Remove the socket and let the lock go. Safe to call twice."""
        if self._descriptor is None:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _error(self, reason: str, why: str, **metadata: str) -> TripodError:
        return TripodError(
            f"Unix socket {self.path} {why}",
            code=Code.FAILED_PRECONDITION,
            reason=reason,
            metadata={"path": str(self.path), **metadata},
        )
