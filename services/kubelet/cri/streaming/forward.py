"""Forwarded ports: many connections into one sandbox over one client's connection.

Each half of a connection ends by itself. One that fails says why on its error stream and leaves the others
alone; a connection that the program inside resets only ends, because clients of Kubernetes give all up at the
first error that they are told.

Source: kubernetes/kubelet pkg/cri/streaming/portforward/{httpstream,websocket}.go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol

from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.common.remotecommand import websocket
from services.common.spdy.errors import PeerGoneError, ResetStatus
from services.common.spdy.groups import first_of
from services.common.spdy.multiplex import Multiplexer, SpdyStream, StreamResetError
from services.kubelet.cri.streaming.channels import Messages
from services.kubelet.cri.streaming.command import watch
from services.kubelet.cri.streaming.session import ForwardBackend, ForwardRequest, Pipes
from services.kubelet.cri.streaming.spdycommand import TYPE_HEADER

log = get_logger(__name__)

PAIR_SECONDS: Final = 30.0
_READ_BYTES: Final = 64 * 1024
_PORT_LIMIT: Final = 65535


class Duplex(Protocol):
    """The client's side of one connection."""

    async def read(self) -> bytes:
        """Return what the client sends; b"" at its end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to the client; waits for it."""
        ...

    def end(self) -> None:
        """Tell the client that no more comes."""
        ...


async def relay(client: Duplex, pipes: Pipes, *, half_close: bool) -> None:
    """Move bytes both ways until both sides have ended, or with `half_close` off until the program has.

    Raises `StreamResetError` or `PeerGoneError` when the client gives up.
    """
    reader, writer = pipes
    try:
        async with asyncio.TaskGroup() as group:
            inbound = group.create_task(_inbound(client, writer))
            await _outbound(reader, client)
            if not half_close:
                inbound.cancel()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    finally:
        writer.close()


async def _inbound(client: Duplex, writer: asyncio.StreamWriter) -> None:
    deaf = False
    while data := await client.read():
        if deaf:
            continue
        try:
            writer.write(data)
            await writer.drain()
        except OSError:
            # What else comes is dropped: unread data would hold up the other connections.
            deaf = True
    with contextlib.suppress(OSError):
        writer.write_eof()


async def _outbound(reader: asyncio.StreamReader, client: Duplex) -> None:
    while data := await _read(reader):
        await client.write(data)
    client.end()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(_READ_BYTES)
    except OSError:
        return b""


def refusal(sandbox_id: str, port: int, message: str) -> bytes:
    """Say why a port cannot be forwarded, in the kubelet's words."""
    return f"error forwarding port {port} to pod {sandbox_id}, uid : {message}".encode()


class SpdyForward:
    """Serves pairs of a data and an error stream, joined by their request id."""

    def __init__(
        self, link: Multiplexer, backend: ForwardBackend, request: ForwardRequest, clock: Clock
    ) -> None:
        self._link = link
        self._backend = backend
        self._request = request
        self._clock = clock
        self._halves: dict[str, asyncio.Future[SpdyStream]] = {}

    async def run(self) -> None:
        """Serve until the client begins no more streams and all have ended. Raises `PeerGoneError`."""
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watch(self._link, self._clock))
            async with asyncio.TaskGroup() as pairs:
                while stream := await self._link.accept():
                    self._take(stream, pairs)
            watcher.cancel()

    def _take(self, stream: SpdyStream, pairs: asyncio.TaskGroup) -> None:
        kind, port = stream.headers.get(TYPE_HEADER, ""), _port(stream.headers.get("port", ""))
        if kind not in ("data", "error") or port is None:
            stream.reset(ResetStatus.PROTOCOL_ERROR)
            return
        key = _request_id(stream, kind)
        other = "data" if kind == "error" else "error"
        waiting = self._halves.pop(f"{other} {key}", None)
        if waiting is not None and not waiting.done():
            waiting.set_result(stream)
            return
        if f"{kind} {key}" in self._halves:
            stream.reset(ResetStatus.PROTOCOL_ERROR)
            return
        place = self._halves[f"{kind} {key}"] = asyncio.get_running_loop().create_future()
        pairs.create_task(self._pair(stream, kind, port, place))

    async def _pair(self, first: SpdyStream, kind: str, port: int, place: asyncio.Future[SpdyStream]) -> None:
        """Wait for the other stream of a pair and serve both."""
        try:
            async with asyncio.timeout(PAIR_SECONDS):
                second = await place
        except TimeoutError:
            self._halves = {key: other for key, other in self._halves.items() if other is not place}
            first.reset()
            return
        data, error = (first, second) if kind == "data" else (second, first)
        try:
            pipes = await self._backend.connect(self._request.sandbox_id, port)
        except TripodError as err:
            log.info("Could not forward a port", sandbox_id=self._request.sandbox_id, error=err.message)
            await _tell(error, refusal(self._request.sandbox_id, port, err.message))
            data.end()
            return
        try:
            await relay(data, pipes, half_close=True)
        except StreamResetError:
            pass
        finally:
            error.end()


async def _tell(stream: SpdyStream, message: bytes) -> None:
    with contextlib.suppress(StreamResetError):
        await stream.write(message)
    stream.end()


def _port(text: str) -> int | None:
    port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return port if 1 <= port <= _PORT_LIMIT else None


def _request_id(stream: SpdyStream, kind: str) -> str:
    """Return what joins a pair; clients older than request ids open the error stream right before."""
    found = stream.headers.get("requestid")
    return found or f"#{stream.stream_id if kind == 'error' else stream.stream_id - 2}"


class ChannelForward:
    """Serves one connection for each port, on two WebSocket channels each."""

    def __init__(
        self, messages: Messages, backend: ForwardBackend, request: ForwardRequest, clock: Clock
    ) -> None:
        self._messages = messages
        self._backend = backend
        self._request = request
        self._clock = clock

    async def run(self) -> None:
        """Serve until every connection has ended. Raises `PeerGoneError`."""
        ports = [
            _ChannelPort(self._messages, 2 * index, port) for index, port in enumerate(self._request.ports)
        ]
        async with asyncio.TaskGroup() as group:
            helpers = (
                group.create_task(watch(self._messages, self._clock)),
                group.create_task(self._dispatch(ports)),
            )
            async with asyncio.TaskGroup() as connections:
                for port in ports:
                    connections.create_task(self._serve(port))
            for helper in helpers:
                helper.cancel()

    async def _dispatch(self, ports: Sequence[_ChannelPort]) -> None:
        async for message in self._messages:
            try:
                channel, data = websocket.split(message, subprotocol=self._messages.subprotocol)
            except websocket.ChannelError as err:
                raise PeerGoneError(str(err)) from err
            if channel % 2 == 0 and channel // 2 < len(ports) and data:
                await ports[channel // 2].put(data)

    async def _serve(self, port: _ChannelPort) -> None:
        await port.begin()
        try:
            pipes = await self._backend.connect(self._request.sandbox_id, port.port)
        except TripodError as err:
            await port.fail(refusal(self._request.sandbox_id, port.port, err.message))
        else:
            await relay(port, pipes, half_close=False)
        port.deaf = True
        port.drop()


class _ChannelPort:
    """One port's two channels."""

    def __init__(self, messages: Messages, channel: int, port: int) -> None:
        self._messages = messages
        self._channel = channel
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self.port = port
        self.deaf = False

    async def begin(self) -> None:
        """Name the port on both channels."""
        for channel in (self._channel, self._channel + 1):
            await self._messages.send(channel, self.port.to_bytes(2, "little"))

    async def fail(self, message: bytes) -> None:
        """Tell an error."""
        await self._messages.send_all(self._channel + 1, message)

    async def put(self, data: bytes) -> None:
        """Take what the client sent; waits until it is used, or drops it after the connection's end."""
        if not self.deaf:
            await self._inbox.put(data)

    def drop(self) -> None:
        """Let a waiting `put` go on."""
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                self._inbox.get_nowait()

    async def read(self) -> bytes:
        """Return what the client sent."""
        return await self._inbox.get()

    async def write(self, data: bytes) -> None:
        """Send data. Raises `PeerGoneError`."""
        await self._messages.send_all(self._channel, data)

    def end(self) -> None:
        """Do nothing: this protocol cannot tell."""
