"""Who may change the node: the node's token, and the group of unix sockets.

The token guards changing calls on loopback TCP. It is a file of mode 0660 whose
group is that of the engine's socket: who may use the engine may use the node.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from services.common.errors import Code, TripodError

TOKEN_MODE = 0o660
_TOKEN_BYTES = 32


def load_or_create_token(path: Path, *, group: int | None) -> str:
    """Return the token in `path`, made there at first use.

    The file is written beside and linked into place, so two starters agree and a
    crash leaves no half of it. Raises `TOKEN_UNREADABLE` for an empty or foreign file.
    """
    if not path.exists():
        _create(path, group)
    return read_token(path)


def read_token(path: Path) -> str:
    """Return the token in `path`. Raises `TOKEN_UNREADABLE` when there is none that can be read."""
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    if len(token) < _TOKEN_BYTES:
        raise _unreadable(path, "the file holds no token; remove it and restart the kubelet")
    return token


def _unreadable(path: Path, why: str) -> TripodError:
    return TripodError(
        f"Cannot read the node token {path}: {why}",
        code=Code.FAILED_PRECONDITION,
        reason="TOKEN_UNREADABLE",
        metadata={"path": str(path)},
    )


def _create(path: Path, group: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        give_to_group(draft, group)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)


def give_to_group(path: Path, group: int | None, mode: int = TOKEN_MODE) -> None:
    """Set mode 0660 and the group, as far as this user may; without the right, the owner alone keeps it."""
    if group is not None:
        try:
            os.chown(path, -1, group)
        except PermissionError:
            mode &= 0o700
    path.chmod(mode)


def token_matches(presented: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(presented.encode(), expected.encode())


def socket_group(path: Path) -> int | None:
    """Return the group of a unix socket; None when there is no socket at `path`."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_gid if stat.S_ISSOCK(status.st_mode) else None
