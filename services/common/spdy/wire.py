"""A connection that HTTP has handed over: bytes both ways."""

from __future__ import annotations

import asyncio
from typing import Final

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
