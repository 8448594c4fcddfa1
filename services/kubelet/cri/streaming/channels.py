"""WebSocket clients: a command's channels, and what those of a forwarded port have in common with them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import WSMsgType, web

from services.common.remotecommand import websocket
from services.common.remotecommand.terminal import TerminalSize
from services.common.remotecommand.websocket import Channel, ChannelError, StdinData, StdinEnd
from services.common.spdy.errors import PeerGoneError
from services.kubelet.cri.streaming.command import pass_size, pass_stdin
from services.kubelet.cri.streaming.session import ExecSession, ExecStream
from services.kubelet.cri.streaming.status import Outcome, document, text

_OUTPUTS = {ExecStream.STDOUT: Channel.STDOUT, ExecStream.STDERR: Channel.STDERR}


class Messages:
    """A WebSocket's messages, taken apart. `activity_count` grows with every message either way."""

    def __init__(self, socket: web.WebSocketResponse, subprotocol: str) -> None:
        self._socket = socket
        self.subprotocol = subprotocol
        self.activity_count = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what the client sends. Raises `PeerGoneError` at its end."""
        while True:
            message = await self._socket.receive()
            self.activity_count += 1
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                raise PeerGoneError(message.type.name)
            yield message.data.encode() if isinstance(message.data, str) else message.data

    async def send(self, channel: int, data: bytes) -> None:
        """Send one message; waits while the client does not read. Raises `PeerGoneError`."""
        self.activity_count += 1
        message = websocket.encode(channel, data, subprotocol=self.subprotocol)
        try:
            if isinstance(message, str):
                await self._socket.send_str(message)
            else:
                await self._socket.send_bytes(message)
        except ConnectionError as err:
            raise PeerGoneError(str(err)) from err

    async def send_all(self, channel: int, data: bytes) -> None:
        """Send data of any length. Raises `PeerGoneError`."""
        for start in range(0, len(data), websocket.FRAME_BYTES):
            await self.send(channel, data[start : start + websocket.FRAME_BYTES])

    async def ping(self) -> None:
        """Write a ping. Raises `PeerGoneError`."""
        try:
            await self._socket.ping()
        except ConnectionError as err:
            raise PeerGoneError(str(err)) from err


class ChannelCommand:
    """A command's client on WebSocket channels. Implements `CommandPeer`."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._protocol = messages.subprotocol

    @property
    def activity_count(self) -> int:
        """How many messages there were."""
        return self._messages.activity_count

    async def ping(self) -> None:
        """Write a ping. Raises `PeerGoneError`."""
        await self._messages.ping()

    async def ready(self) -> None:
        """Send an empty message, as Kubernetes' own server does."""
        await self._messages.send(Channel.STDOUT, b"")

    async def feed(self, session: ExecSession, *, wanted: bool) -> None:
        """Pass the client's input on until it goes. Raises `PeerGoneError`."""
        async for message in self._messages:
            match self._decode(message):
                case StdinData(data) if wanted:
                    wanted = await pass_stdin(session, data)
                case StdinEnd() if wanted:
                    wanted = await pass_stdin(session, b"")
                case TerminalSize(width, height):
                    await pass_size(session, width, height)

    def _decode(self, message: bytes) -> websocket.Input | None:
        try:
            return websocket.decode_input(message, subprotocol=self._protocol)
        except ChannelError as err:
            raise PeerGoneError(str(err)) from err

    async def send(self, stream: ExecStream, data: bytes) -> None:
        """Send output. Raises `PeerGoneError`."""
        await self._messages.send_all(_OUTPUTS[stream], data)

    async def finish(self, outcome: Outcome) -> None:
        """Send the status. Raises `PeerGoneError`."""
        if websocket.tells_status(self._protocol):
            await self._messages.send(Channel.STATUS, document(outcome))
        elif words := text(outcome):
            await self._messages.send(Channel.STATUS, words.encode())
