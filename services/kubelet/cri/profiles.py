"""Reads the seccomp profile that a container names, as a file of the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from services.kubelet.cri.errors import invalid

_LIMIT_BYTES: Final = 1 << 20
_FIELD: Final = "config.linux.security_context.seccomp.localhost_ref"


def read(path: Path) -> str:
    """Return a profile as the engine takes it: JSON. Blocks. Raises REQUEST_INVALID."""
    if not path.is_absolute():
        raise invalid(_FIELD, f"{path} is no absolute path")
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise invalid(_FIELD, f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LIMIT_BYTES:
        raise invalid(_FIELD, f"{path} has more than {_LIMIT_BYTES} bytes")
    try:
        profile = json.loads(data)
    except ValueError as error:
        raise invalid(_FIELD, f"{path} is no JSON: {error}") from error
    if not isinstance(profile, dict):
        raise invalid(_FIELD, f"{path} holds no profile")
    return json.dumps(profile, separators=(",", ":"))
