"""Takes a connection over from HTTP: after the 101 it is bytes both ways.

aiohttp hands out its transport and leaves the protocol on it to whoever sets one; it is told of the
connection's end all the same, by which it ends the handler's task and forgets the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp import web

READ_BYTES: Final = 64 * 1024
_LINGER_SECONDS: Final = 2.0
_FLUSH_SECONDS: Final = 30.0


class SocketWire:
    """A taken connection. Implements `Wire`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        """Return bytes as they come; b"" at the end."""
        try:
            return await self._reader.read(READ_BYTES)
        except OSError:
            return b""

    async def send(self, data: bytes) -> None:
        """Send; waits while the peer does not read. Raises `ConnectionError`."""
        self._writer.write(data)
        await self._writer.drain()

    async def linger(self) -> None:
        """End our half and drop what the peer still sends, until it ends its half: 2 s at most.

        Closing with unread data would make the kernel throw away what the peer has not read yet.
        """
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                self._writer.write_eof()
                while await self.receive():
                    pass
        except (OSError, TimeoutError):
            return

    async def drained(self) -> None:
        """Close, and wait until what was written has been taken: 30 s at most."""
        self._writer.close()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            return

    def abort(self) -> None:
        """Cut the connection. May be repeated."""
        self._writer.transport.abort()


class _Taken(asyncio.StreamReaderProtocol):
    """Feeds a reader, and tells the connection's former protocol of its end."""

    def __init__(self, reader: asyncio.StreamReader, former: asyncio.BaseProtocol) -> None:
        super().__init__(reader)
        self._former = former

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._former.connection_lost(exc)


async def take_over(http: web.Request, headers: Mapping[str, str]) -> SocketWire:
    """Answer 101 and return the connection. The caller aborts it. Raises `ConnectionError`."""
    transport = http.transport
    if transport is None:
        raise ConnectionResetError("the client went before the answer")
    former = transport.get_protocol()
    reader = asyncio.StreamReader(READ_BYTES)
    taken = _Taken(reader, former)
    transport.set_protocol(taken)
    taken.connection_made(transport)
    transport.resume_reading()
    wire = SocketWire(reader, asyncio.StreamWriter(transport, taken, reader, asyncio.get_running_loop()))
    lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    await wire.send("\r\n".join([*lines, "", ""]).encode())
    return wire
