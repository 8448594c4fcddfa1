"""A connection that HTTP has handed over: bytes both ways."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final, Protocol

READ_BYTES: Final = 64 * 1024
_LINGER_SECONDS: Final = 2.0
_FLUSH_SECONDS: Final = 30.0


class Wire(Protocol):
    """What carries the bytes: a socket, or the messages of a WebSocket."""

    async def receive(self) -> bytes:
        """Return bytes as they come; b"" at the end."""
        ...

    async def send(self, data: bytes) -> None:
        """Send; waits while the peer does not read. Raises `ConnectionError`."""
        ...


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

        Closing with unread data would make the kernel throw away what the peer has not read yet. TLS has no
        half ends; to close it waits for the peer as it is.
        """
        if not self._writer.can_write_eof():
            return
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


class DialedWire:
    """A connection that we made. Implements `Wire`.

    Go's servers tell how a command ended and close, whatever of its input they have not read, and the kernel
    then resets the connection. asyncio's transports end at the first write that meets the reset and lose what
    came ahead of it; here the two halves know nothing of each other, and all that came is read.
    """

    def __init__(self, dialed: socket.socket) -> None:
        dialed.setblocking(False)
        dialed.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = dialed
        self._read_ahead = b""
        self._waiting_count = 0
        self._aborted = False

    @classmethod
    async def dial(cls, host: str, port: int) -> DialedWire:
        """Connect. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failed: OSError | None = None
        for family, kind, protocol, _, address in found:
            made = socket.socket(family, kind, protocol)
            try:
                made.setblocking(False)
                await loop.sock_connect(made, address)
            except OSError as error:
                made.close()
                failed = error
            except BaseException:
                made.close()
                raise
            else:
                return cls(made)
        raise failed or OSError(f"{host} has no address")

    async def receive(self) -> bytes:
        """Return bytes as they come; b"" at the end, which a reset is, too."""
        if self._read_ahead:
            data, self._read_ahead = self._read_ahead, b""
            return data
        if self._aborted:
            return b""
        with contextlib.suppress(OSError), self._using():
            return await asyncio.get_running_loop().sock_recv(self._socket, READ_BYTES)
        return b""

    def put_back(self, data: bytes) -> None:
        """Have some bytes be received again, once."""
        self._read_ahead = data + self._read_ahead

    async def send(self, data: bytes) -> None:
        """Send; waits while the peer does not read. Raises `ConnectionError`."""
        if self._aborted:
            raise ConnectionAbortedError("the connection was cut here")
        with self._using():
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def abort(self) -> None:
        """Cut the connection. May be repeated."""
        self._aborted = True
        with contextlib.suppress(OSError):
            # Wakes whoever waits at it.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._close_unused()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """Keep the socket open: the event loop must not wait at a number that another file has by then."""
        self._waiting_count += 1
        try:
            yield
        finally:
            self._waiting_count -= 1
            self._close_unused()

    def _close_unused(self) -> None:
        if self._aborted and not self._waiting_count:
            self._socket.close()
