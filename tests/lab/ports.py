"""Ports for servers that must be told theirs."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

# Below what the kernel gives whoever asks for any port, and below node ports.
_FIRST, _COUNT = 10_000, 20_000


def free_port(address: str = "127.0.0.1") -> int:
    """Find a port that nobody listens on, and that nobody gets who did not ask for it."""
    while True:
        with (
            suppress(OSError),
            socket.create_server((address, _FIRST + secrets.randbelow(_COUNT))) as listener,
        ):
            return int(listener.getsockname()[1])
