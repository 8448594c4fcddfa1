"""Takes a connection over from HTTP: after the 101 it is bytes both ways.

aiohttp hands out its transport and leaves the protocol on it to whoever sets one; it is told of the
connection's end all the same, by which it ends the handler's task and forgets the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from services.common.spdy.wire import READ_BYTES, SocketWire


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
