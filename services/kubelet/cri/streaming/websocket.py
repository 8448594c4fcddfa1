"""Kubernetes' remote command channels inside WebSocket messages. No I/O.

Rules:

- A binary message is one byte, the channel, and then data. 0 to 2 are the standard streams, 3 carries one
  status document at the end, 4 the terminal's size as JSON.
- `v5.channel.k8s.io` adds channel 255: its data names a channel that ends here. `v4.channel.k8s.io` has no
  way to end the standard input alone.
- The status document tells how the command ended; a non-zero exit code is a Failure with reason
  NonZeroExitCode.
- Messages on channels that a client may not write are ignored, as Kubernetes' own server does.

Source: KEP-4006; kubernetes/apimachinery pkg/util/remotecommand/constants.go; kubernetes/kubelet
pkg/cri/streaming/remotecommand. Left out: the base64 forms of the protocol, which only old browsers need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SUBPROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""What we speak, the best first."""

FRAME_BYTES: Final = 32 * 1024
"""Most data that one of our messages carries."""

_TERMINAL_LIMIT: Final = 65535


class Channel(IntEnum):
    """What a message is about."""

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


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The terminal changed its size; each side is from 1 to 65535."""

    width: int
    height: int


Input = StdinData | StdinEnd | TerminalSize


def choose_subprotocol(offered: Iterable[str]) -> str | None:
    """Return the best subprotocol that a client offers; None if we speak none of them."""
    offers = set(offered)
    return next((ours for ours in SUBPROTOCOLS if ours in offers), None)


def decode_input(message: bytes, *, subprotocol: str) -> Input | None:
    """Read one message of a client; None for one that is to be ignored. Raises `ChannelError`."""
    if not message:
        raise ChannelError("a message without a channel")
    channel, data = message[0], message[1:]
    if channel == Channel.STDIN:
        return StdinData(data) if data else None
    if channel == Channel.RESIZE:
        return _size(data)
    if channel == Channel.CLOSE and subprotocol == SUBPROTOCOLS[0]:
        return StdinEnd() if data[:1] == bytes([Channel.STDIN]) else None
    return None


def encode(channel: Channel, data: bytes) -> bytes:
    """Render one message."""
    return bytes([channel]) + data


def exit_status(exit_code: int) -> bytes:
    """Render the status document of a command that ended by itself."""
    if exit_code == 0:
        return _document({"metadata": {}, "status": "Success"})
    return _document(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: {exit_code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(exit_code)}]},
        }
    )


def failure_status(message: str) -> bytes:
    """Render the status document of a command that could not be run or watched to its end."""
    return _document(
        {"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500}
    )


def _document(status: dict[str, object]) -> bytes:
    return json.dumps(status, separators=(",", ":")).encode()


def _size(data: bytes) -> TerminalSize | None:
    try:
        size = json.loads(data)
        width, height = int(size["Width"]), int(size["Height"])
    except (ValueError, KeyError, TypeError) as err:
        raise ChannelError("a terminal size that is not {Width, Height}") from err
    # A client without a terminal reports zeros.
    if not (1 <= width <= _TERMINAL_LIMIT and 1 <= height <= _TERMINAL_LIMIT):
        return None
    return TerminalSize(width, height)
