"""Where the port with TLS is open, and what a node declares that has it. Pure."""

from __future__ import annotations

from typing import Final

CLUSTER_ADDRESS: Final = "0.0.0.0:10250"
# KEP-4006: the API server passes WebSockets on to nodes that declare it, and translates them for others.
WEBSOCKETS: Final = "ExtendWebSocketsToKubelet"


def address(setting: str, *, in_cluster: bool) -> str:
    """Return where the port is open; empty when it is not."""
    return setting or (CLUSTER_ADDRESS if in_cluster else "")


def split_address(text: str) -> tuple[str, int]:
    """Take `HOST:PORT` apart; the port alone is enough. Raises `ValueError`."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)
