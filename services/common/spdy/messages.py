"""A WebSocket whose binary messages carry SPDY's bytes."""

from __future__ import annotations

from aiohttp import WSMsgType, web


class WebSocketWire:
    """SPDY's bytes in binary messages. Implements `Wire`."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def receive(self) -> bytes:
        """Return the next message with something in it; b"" at the end."""
        while True:
            message = await self._socket.receive()
            if message.type is not WSMsgType.BINARY:
                return b""
            if message.data:
                return bytes(message.data)

    async def send(self, data: bytes) -> None:
        """Send one message. Raises `ConnectionError`."""
        await self._socket.send_bytes(data)
