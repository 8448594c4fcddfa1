"""Kubernetes' channels inside WebSocket messages. No I/O.

Rules:

- A binary message is one byte, the channel, and then data. For commands 0 to 2 are the standard streams, 3
  carries one status at the end, 4 the terminal's size as JSON.
- In the base64 forms a text message is the channel as a digit, and then the data in base64.
- `v5.channel.k8s.io` adds channel 255: its data names a channel that ends here. Earlier versions have no way
  to end the standard input alone. `channel.k8s.io` tells of a failure in words instead of a document.
- Messages on channels that a client may not write are ignored, as Kubernetes' own server does.
- A forwarded port has two channels, data and errors, in the order of the ports that were asked for; each
  begins with the port as two bytes, little endian.

Source: KEP-4006; kubernetes/apimachinery pkg/util/remotecommand/constants.go; kubernetes/kubelet
pkg/cri/streaming/remotecommand and portforward/websocket.go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.common.remotecommand.terminal import SizeError, TerminalSize, parse_size

V5: Final = "v5.channel.k8s.io"
V4: Final = "v4.channel.k8s.io"
V4_BASE64: Final = "v4.base64.channel.k8s.io"
V1: Final = "channel.k8s.io"
V1_BASE64: Final = "base64.channel.k8s.io"

SUBPROTOCOLS: Final = (V5, V4, V4_BASE64, V1, V1_BASE64)
"""What we speak for commands, the best first."""

FORWARD_SUBPROTOCOLS: Final = (V4, V4_BASE64)
"""What we speak for forwarded ports besides SPDY."""

FRAME_BYTES: Final = 32 * 1024
"""Most data that one of our messages carries."""


class Channel(IntEnum):
    """What a command's message is about."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    STATUS = 3
    RESIZE = 4
    CLOSE = 255


class ChannelError(ValueError):
    """A message does not follow the protocol."""


@dataclass(frozen=True, slots=True)
class StdinData:
    """Bytes for the standard input."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StdinEnd:
    """The standard input ends here."""


Input = StdinData | StdinEnd | TerminalSize


def choose_subprotocol(offered: Iterable[str], served: tuple[str, ...] = SUBPROTOCOLS) -> str | None:
    """Return the best subprotocol that a client offers; None if we speak none of them."""
    offers = set(offered)
    return next((ours for ours in served if ours in offers), None)


def split(message: bytes, *, subprotocol: str) -> tuple[int, bytes]:
    """Take a message apart: channel and data. Raises `ChannelError`."""
    if not message:
        raise ChannelError("a message without a channel")
    if subprotocol not in (V4_BASE64, V1_BASE64):
        return message[0], message[1:]
    channel = message[0] - ord("0")
    if not 0 <= channel <= 9:
        raise ChannelError("a channel that is no digit")
    try:
        return channel, base64.b64decode(message[1:], validate=True)
    except binascii.Error as err:
        raise ChannelError("data that is no base64") from err


def decode_input(message: bytes, *, subprotocol: str) -> Input | None:
    """Read one message of a command's client; None for one that is to be ignored. Raises `ChannelError`."""
    channel, data = split(message, subprotocol=subprotocol)
    if channel == Channel.STDIN:
        return StdinData(data) if data else None
    if channel == Channel.RESIZE:
        return _size(data)
    if channel == Channel.CLOSE and subprotocol == V5:
        return StdinEnd() if data[:1] == bytes([Channel.STDIN]) else None
    return None


def encode(channel: int, data: bytes, *, subprotocol: str = V4) -> bytes | str:
    """Render one message: bytes, or text for the base64 forms."""
    if subprotocol in (V4_BASE64, V1_BASE64):
        return f"{channel}{base64.b64encode(data).decode()}"
    return bytes([channel]) + data


def tells_status(subprotocol: str) -> bool:
    """Tell whether a command's end is told as a document."""
    return subprotocol not in (V1, V1_BASE64)


def _size(data: bytes) -> TerminalSize | None:
    try:
        return parse_size(data)
    except SizeError as err:
        raise ChannelError(str(err)) from err
