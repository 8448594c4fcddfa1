"""WebSocket clients of a runtime that speaks only SPDY: channels become streams, a tunnel its bytes.

Source: kubernetes apiserver pkg/util/proxy/{streamtranslator,streamtunnel}.go (KEP-4006).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Final

from aiohttp import WSCloseCode, WSMsgType, web

from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.remotecommand import websocket
from services.common.remotecommand.terminal import TerminalSize
from services.common.remotecommand.websocket import Channel, ChannelError, StdinData, StdinEnd
from services.common.spdy.errors import PeerGoneError
from services.common.spdy.groups import first_of
from services.common.spdy.messages import WebSocketWire
from services.common.spdy.wire import DialedWire
from services.kubelet.adapters.exec_spdy import SpdyExec
from services.kubelet.adapters.exec_stream import ExecChannel
from services.kubelet.web.relay import IDLE_SECONDS, pump_both

MESSAGE_BYTES: Final = 1 << 20
CLOSE_SECONDS: Final = 2.0
PING_SECONDS: Final = 5.0
_OUTPUTS: Final = {ExecChannel.STDOUT: Channel.STDOUT, ExecChannel.STDERR: Channel.STDERR}


def websocket_answer(protocol: str) -> web.WebSocketResponse:
    """Make the answer that begins a WebSocket."""
    return web.WebSocketResponse(
        protocols=(protocol,), max_msg_size=MESSAGE_BYTES, timeout=CLOSE_SECONDS, compress=False
    )


async def serve_command(
    http: web.Request, command: SpdyExec, protocol: str, clock: Clock
) -> web.StreamResponse:
    """Serve a command's streams on channels. Closes the client's side alone."""
    socket = websocket_answer(protocol)
    await socket.prepare(http)
    channels = _Channels(socket, command, protocol)
    try:
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(channels.feed()), group.create_task(channels.watch(clock))]
            await channels.tell()
            for helper in helpers:
                helper.cancel()
    except BaseExceptionGroup as errors:
        if not isinstance(first_of(errors), PeerGoneError | ConnectionError | TripodError):
            raise
        await socket.close(code=WSCloseCode.GOING_AWAY)
    else:
        await socket.close()
    return socket


class _Channels:
    """One client's channels, and the command behind them."""

    def __init__(self, socket: web.WebSocketResponse, command: SpdyExec, protocol: str) -> None:
        self._socket = socket
        self._command = command
        self._protocol = protocol
        self._activity_count = 0

    async def tell(self) -> None:
        """Send output, then the status as the runtime tells it."""
        await self._send(Channel.STDOUT, b"")
        async for channel, data in self._command.outputs():
            for start in range(0, len(data), websocket.FRAME_BYTES):
                await self._send(_OUTPUTS[channel], data[start : start + websocket.FRAME_BYTES])
        status = await self._command.status()
        words = status if websocket.tells_status(self._protocol) else _failure(status)
        if words:
            await self._send(Channel.STATUS, words)

    async def _send(self, channel: int, data: bytes) -> None:
        self._activity_count += 1
        message = websocket.encode(channel, data, subprotocol=self._protocol)
        if isinstance(message, str):
            await self._socket.send_str(message)
        else:
            await self._socket.send_bytes(message)

    async def feed(self) -> None:
        """Pass input and sizes on until the client goes. Raises `PeerGoneError` then."""
        while True:
            message = await self._socket.receive()
            self._activity_count += 1
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                raise PeerGoneError(message.type.name)
            data = message.data.encode() if isinstance(message.data, str) else message.data
            try:
                found = websocket.decode_input(data, subprotocol=self._protocol)
            except ChannelError as error:
                raise PeerGoneError(str(error)) from error
            # A command that reads no more still has something to tell.
            with contextlib.suppress(TripodError):
                await self._pass(found)

    async def _pass(self, found: websocket.Input | None) -> None:
        match found:
            case StdinData(data):
                await self._command.write_stdin(data)
            case StdinEnd():
                await self._command.close_stdin()
            case TerminalSize(width, height):
                await self._command.resize(width, height)

    async def watch(self, clock: Clock) -> None:
        """Write now and then, so that a lost connection shows. Raises `PeerGoneError` after idle hours."""
        seen, since = self._activity_count, clock.monotonic()
        while clock.monotonic() - since < IDLE_SECONDS:
            await clock.sleep(PING_SECONDS)
            await self._socket.ping()
            if self._activity_count != seen:
                seen, since = self._activity_count, clock.monotonic()
        raise PeerGoneError("idle for too long")


def _failure(status: bytes) -> bytes:
    """Return what the oldest protocol tells: the words of a failure."""
    try:
        told = json.loads(status)
        return str(told.get("message") or "").encode() if told.get("status") != "Success" else b""
    except (ValueError, AttributeError):
        return b"the runtime sent a status that cannot be read"


async def serve_tunnel(
    http: web.Request, runtime: DialedWire, protocol: str, clock: Clock
) -> web.StreamResponse:
    """Serve SPDY's bytes, as they are, in messages."""
    socket = websocket_answer(protocol)
    try:
        await socket.prepare(http)
        await pump_both(WebSocketWire(socket), runtime, clock)
    finally:
        runtime.abort()
    await socket.close()
    return socket
