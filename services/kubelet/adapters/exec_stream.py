"""The kubelet's end of a command's streams, at the URL that a CRI server's `Exec` has returned.

A WebSocket that speaks `v5.channel.k8s.io` or `v4.channel.k8s.io` (KEP-4006): a binary message is one byte,
the channel, and data. Only v5 can tell the end of the input: for a command with input, a server that does
not speak it (containerd 1.6) is spoken to in SPDY, see `exec_spdy`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from enum import IntEnum
from typing import Any, Final, Protocol

import aiohttp

from services.common.errors import Code, TripodError

SUBPROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
MESSAGE_BYTES: Final = 1 << 20
FRAME_BYTES: Final = 32 * 1024
# How servers refuse a subprotocol, or WebSockets at all; whatever else they say would be so in SPDY, too.
_NOT_SPOKEN: Final = frozenset({400, 403, 405, 426, 501})


class ExecChannel(IntEnum):
    """What a message is about; clients read STDOUT and STDERR."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    STATUS = 3
    RESIZE = 4
    CLOSE = 255


class ExecStreamError(TripodError):
    """A command could not be run, or its streams broke before it ended."""


class NoHalfCloseError(ExecStreamError):
    """The server's WebSockets cannot tell the end of the input. The URL is used up."""


class ExecClient(Protocol):
    """One command's streams. Iterate to its end, then read `exit_code`; the opener closes it."""

    @property
    def exit_code(self) -> int:
        """The command's exit code. Raises `ExecStreamError` EXEC_STREAM_BROKEN while it is not known."""
        ...

    def __aiter__(self) -> AsyncIterator[tuple[ExecChannel, bytes]]:
        """Yield (STDOUT or STDERR, bytes) until the command has ended; then `exit_code` is known.

        Raises `ExecStreamError`: EXEC_FAILED when the command could not be run, EXEC_STREAM_BROKEN when the
        connection ended without a status.
        """
        ...

    async def write_stdin(self, data: bytes) -> None:
        """Write to the standard input; waits while nobody reads. Raises `ExecStreamError`."""
        ...

    async def close_stdin(self) -> None:
        """End the standard input."""
        ...

    async def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size in columns and rows. Raises `ExecStreamError`."""
        ...

    async def close(self) -> None:
        """End the connection, and with it a command that still runs. May be repeated."""
        ...


class WebSocketExec:
    """A command's streams in a WebSocket. Implements `ExecClient`.

    Nothing is buffered beyond 64 KiB: output that is not iterated stops the command.
    """

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._session = session
        self._socket = socket
        self._exit_code: int | None = None

    @property
    def exit_code(self) -> int:
        """The command's exit code. Raises `ExecStreamError` EXEC_STREAM_BROKEN while it is not known."""
        if self._exit_code is None:
            raise broken("the command has not ended")
        return self._exit_code

    async def __aiter__(self) -> AsyncIterator[tuple[ExecChannel, bytes]]:
        """Yield (STDOUT or STDERR, bytes) until the command has ended; then `exit_code` is known.

        Raises `ExecStreamError`: EXEC_FAILED when the command could not be run, EXEC_STREAM_BROKEN when the
        connection ended without a status.
        """
        async for message in self._socket:
            channel, data = _split(message)
            if channel in (ExecChannel.STDOUT, ExecChannel.STDERR) and data:
                yield channel, data
            elif channel is ExecChannel.STATUS:
                self._exit_code = parse_status(data)
                return
        raise broken(f"the connection ended with code {self._socket.close_code}")

    async def write_stdin(self, data: bytes) -> None:
        """Write to the command's standard input; waits while the server does not read.

        Raises `ExecStreamError` EXEC_STREAM_BROKEN.
        """
        for start in range(0, len(data), FRAME_BYTES):
            await self._send(ExecChannel.STDIN, data[start : start + FRAME_BYTES])

    async def close_stdin(self) -> None:
        """End the standard input. A server that speaks only v4 cannot be told; then this does nothing."""
        if self._socket.protocol == SUBPROTOCOLS[0]:
            await self._send(ExecChannel.CLOSE, bytes([ExecChannel.STDIN]))

    async def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size in columns and rows. Raises `ExecStreamError` EXEC_STREAM_BROKEN."""
        await self._send(ExecChannel.RESIZE, json.dumps({"Width": width, "Height": height}).encode())

    async def close(self) -> None:
        """End the connection, and with it a command that still runs. May be repeated."""
        await self._socket.close()
        await self._session.close()

    async def __aenter__(self) -> WebSocketExec:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, channel: ExecChannel, data: bytes) -> None:
        try:
            await self._socket.send_bytes(bytes([channel]) + data)
        except ConnectionError as err:
            raise broken(str(err)) from err


async def open_exec_stream(url: str, *, half_close: bool = False) -> WebSocketExec:
    """Connect to an `http` or `https` URL of a CRI server. The caller closes the client.

    Raises `ExecStreamError` EXEC_STREAM_REFUSED when the server does not answer in 10 s or refuses,
    `NoHalfCloseError` when the end of the input must be told and cannot be.
    """
    # `trust_env` stays off: the URL is a node-local one, and a proxy would learn its token.
    session = aiohttp.ClientSession(auto_decompress=False)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            socket = await session.ws_connect(
                url,
                # A server that takes v4 would run the command, and asking in SPDY then would run it again.
                protocols=SUBPROTOCOLS[:1] if half_close else SUBPROTOCOLS,
                max_msg_size=MESSAGE_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as err:
        await session.close()
        if half_close and getattr(err, "status", 0) in _NOT_SPOKEN:
            raise _no_half_close() from err
        raise refused(err) from err
    except BaseException:
        await session.close()
        raise
    if socket.protocol is None:
        await socket.close()
        await session.close()
        raise _no_half_close() if half_close else refused("it chose no subprotocol")
    return WebSocketExec(session, socket)


def parse_status(document: bytes) -> int:
    """Read the exit code from a status document (apimachinery `metav1.Status`).

    Raises `ExecStreamError` EXEC_FAILED when it tells of anything but an exit code.
    """
    try:
        status: dict[str, Any] = json.loads(document)
        if status["status"] == "Success":
            return 0
        if status.get("reason") == "NonZeroExitCode":
            causes = status["details"]["causes"]
            return int(next(cause["message"] for cause in causes if cause["reason"] == "ExitCode"))
        message = str(status.get("message") or "no reason given")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as err:
        raise failed("the runtime sent a status that cannot be read") from err
    raise failed(message)


def _split(message: aiohttp.WSMessage) -> tuple[ExecChannel | None, bytes]:
    """Take a message apart; channel None for one that is none of ours."""
    if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
        return None, b""
    try:
        return ExecChannel(message.data[0]), message.data[1:]
    except ValueError:
        return None, b""


def _no_half_close() -> NoHalfCloseError:
    return NoHalfCloseError(
        f"The runtime's streaming server speaks no {SUBPROTOCOLS[0]}",
        code=Code.UNIMPLEMENTED,
        reason="EXEC_NO_HALF_CLOSE",
    )


def refused(cause: object) -> ExecStreamError:
    """Say that a streaming server does not take the connection. No URL, which has a token."""
    # A client error's text may hold the URL, and with it the token: only the status or the kind is told.
    status = getattr(cause, "status", None)
    known = cause if isinstance(cause, str) else f"HTTP {status}" if status else type(cause).__name__
    return ExecStreamError(
        f"The runtime's streaming server refused the connection: {known}",
        code=Code.UNAVAILABLE,
        reason="EXEC_STREAM_REFUSED",
        metadata={"cause": str(known)},
    )


def broken(cause: str) -> ExecStreamError:
    """Say that the streams ended before the command did."""
    return ExecStreamError(
        f"The command's streams broke: {cause}",
        code=Code.UNAVAILABLE,
        reason="EXEC_STREAM_BROKEN",
        metadata={"cause": cause},
    )


def failed(message: str) -> ExecStreamError:
    """Say that the command could not be run."""
    return ExecStreamError(
        f"The command could not be run: {message}",
        code=Code.FAILED_PRECONDITION,
        reason="EXEC_FAILED",
        metadata={"cause": message},
    )
