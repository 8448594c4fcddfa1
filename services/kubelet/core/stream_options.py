"""What a client of exec, attach or portForward asked for. Pure.

Source: k8s.io/cri-streaming remotecommand/options.go and portforward/websocket.go: flags are `1` or absent,
error output joins the output of a terminal, and WebSocket channels need their ports named beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PORT_LIMIT = 65535


class StreamOptionsError(ValueError):
    """A query that asks for no streams that there could be; the message is for the client."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Which of a command's streams are wanted. With `tty`, error output joins the output."""

    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True


def streams(query: Mapping[str, Sequence[str]]) -> Streams:
    """Read which streams a command has. Raises `StreamOptionsError`."""
    tty, stdin, stdout, stderr = (_set(query, name) for name in ("tty", "input", "output", "error"))
    if not (stdin or stdout or stderr):
        raise StreamOptionsError("you must specify at least 1 of stdin, stdout, stderr")
    return Streams(tty, stdin, stdout, stderr and not tty)


def _set(query: Mapping[str, Sequence[str]], name: str) -> bool:
    return list(query.get(name, ()))[:1] == ["1"]


def ports(query: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Read the ports of a client on WebSocket channels. Raises `StreamOptionsError`."""
    listed = query.get("port", ())
    if not listed:
        raise StreamOptionsError('query parameter "port" is required')
    if "" in listed:
        raise StreamOptionsError('query parameter "port" cannot be empty')
    return tuple(_port(text) for item in listed for text in item.split(","))


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else _PORT_LIMIT + 1
    if number > _PORT_LIMIT:
        raise StreamOptionsError(f'unable to parse "{text[:20]}" as a port')
    if number < 1:
        raise StreamOptionsError(f'port "{text}" must be > 0')
    return number
