"""Which protocol a client's request leads to. Pure.

Rules: SPDY clients list versions in `X-Stream-Protocol-Version` and the server answers with the best that
both speak; without any it is the first. WebSocket clients list subprotocols, among which
`SPDY/3.1+portforward.k8s.io` means SPDY's bytes inside binary messages.

Source: kubernetes/streaming pkg/httpstream; KEP-4006 for the tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from services.common.remotecommand import websocket

SPDY: Final = "SPDY/3.1"
VERSION_HEADER: Final = "X-Stream-Protocol-Version"
ACCEPTED_HEADER: Final = "X-Accepted-Stream-Protocol-Versions"
COMMAND_PROTOCOLS: Final = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
"""Versions of a command's SPDY streams, the best first."""

FORWARD_PROTOCOL: Final = "portforward.k8s.io"
TUNNEL: Final = f"{SPDY}+{FORWARD_PROTOCOL}"


class Transport(Enum):
    """What carries the streams."""

    SPDY = "spdy"
    CHANNELS = "channels"
    TUNNEL = "tunnel"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is spoken: a transport and its version or subprotocol."""

    transport: Transport
    protocol: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is spoken."""

    status: int
    text: str
    accepted: tuple[str, ...] = ()


def choose(
    *, upgrade: str, forward: bool, versions: Iterable[str], subprotocols: Iterable[str]
) -> Choice | Refusal:
    """Choose for a request: its Upgrade header, whether it forwards ports, and what it offers."""
    if upgrade.lower() == SPDY.lower():
        return _spdy(tuple(versions), (FORWARD_PROTOCOL,) if forward else COMMAND_PROTOCOLS)
    served = (TUNNEL, *websocket.FORWARD_SUBPROTOCOLS) if forward else websocket.SUBPROTOCOLS
    if upgrade.lower() != "websocket":
        return Refusal(426, f"An upgrade is needed: {SPDY}, or WebSocket with one of {', '.join(served)}")
    chosen = websocket.choose_subprotocol(subprotocols, served)
    if chosen is None:
        return Refusal(400, f"None of the offered subprotocols is served; use one of {', '.join(served)}")
    return Choice(Transport.TUNNEL if chosen == TUNNEL else Transport.CHANNELS, chosen)


def _spdy(offered: tuple[str, ...], served: tuple[str, ...]) -> Choice | Refusal:
    if not offered:
        return Choice(Transport.SPDY, served[-1])
    chosen = websocket.choose_subprotocol(offered, served)
    if chosen is None:
        # The words that Kubernetes' clients know.
        words = f"unable to upgrade: unable to negotiate protocol: client supports [{' '.join(offered)}], "
        return Refusal(403, f"{words}server accepts [{' '.join(served)}]", served)
    return Choice(Transport.SPDY, chosen)
