"""A small SPDY client on the server's own codec: streams to write to and read from."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp

from services.common.remotecommand.negotiation import TUNNEL
from services.common.spdy.errors import PeerGoneError
from services.common.spdy.multiplex import Multiplexer, SpdyStream
from services.common.spdy.wire import SocketWire

V4 = "v4.channel.k8s.io"
FORWARD = "portforward.k8s.io"


class Refused(Exception):  # noqa: N818  # an answer, to be looked at
    """The server did not upgrade; `status` is its answer."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status


async def upgraded(
    url: str, *versions: str, receive_bytes: int = 0
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for SPDY; return the raw connection after the 101. Raises `Refused`."""
    place = urlsplit(url)
    plain = socket.socket()
    plain.setblocking(False)
    if receive_bytes:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(plain, (place.hostname, place.port))
    reader, writer = await asyncio.open_connection(sock=plain)
    target = f"{place.path}?{place.query}" if place.query else place.path
    lines = [f"POST {target} HTTP/1.1", f"Host: {place.netloc}", "Content-Length: 0"]
    lines += ["Connection: Upgrade", "Upgrade: SPDY/3.1"]
    lines += [f"X-Stream-Protocol-Version: {version}" for version in versions]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split()[1])
    if status != 101:
        body = await reader.read(4096)
        writer.close()
        raise Refused(status, body.decode())
    return reader, writer


@asynccontextmanager
async def spdy(url: str, *versions: str) -> AsyncIterator[Multiplexer]:
    """Run a SPDY connection for a block."""
    reader, writer = await upgraded(url, *versions)
    try:
        async with _running(Multiplexer(SocketWire(reader, writer), client=True)) as link:
            yield link
    finally:
        writer.transport.abort()


class _ClientWire:
    """SPDY's bytes in a client's messages."""

    def __init__(self, web: aiohttp.ClientWebSocketResponse) -> None:
        self._web = web

    async def receive(self) -> bytes:
        message = await self._web.receive()
        return bytes(message.data) if message.type is aiohttp.WSMsgType.BINARY else b""

    async def send(self, data: bytes) -> None:
        await self._web.send_bytes(data)


@asynccontextmanager
async def tunnel(url: str) -> AsyncIterator[Multiplexer]:
    """Run a SPDY connection inside WebSocket messages for a block."""
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url, protocols=(TUNNEL,)) as web:
            assert web.protocol == TUNNEL
            async with _running(Multiplexer(_ClientWire(web), client=True)) as link:
                yield link


@asynccontextmanager
async def _running(link: Multiplexer) -> AsyncIterator[Multiplexer]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_serve(link))
        try:
            yield link
        finally:
            task.cancel()


async def _serve(link: Multiplexer) -> None:
    try:
        await link.serve(asyncio.Event().wait())
    except PeerGoneError:
        return


async def opened(link: Multiplexer, *kinds: str, **headers: str) -> dict[str, SpdyStream]:
    """Open a stream of each kind and wait until all are accepted."""
    streams = {kind: link.open({"streamType": kind, **headers}) for kind in kinds}
    for stream in streams.values():
        await stream.accepted()
    return streams


async def read_all(stream: SpdyStream) -> bytes:
    """Read to the end."""
    found = bytearray()
    while data := await stream.read():
        found += data
    return bytes(found)
