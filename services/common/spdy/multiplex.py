"""SPDY streams as something to read from and write to, on asyncio.

One task reads the wire and one writes it. A stream that is not read holds up to `STREAM_BYTES`, all together
hold `HELD_BYTES`; beyond that the wire is not read at all until there is room, which stops a peer that
ignores windows. Writers wait while
the peer gives no room and while more than `OUTPUT_BYTES` wait for the wire. What a peer makes us answer
without reading the answers is bounded too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from typing import Final, TypeVar

from services.common.spdy import connection as spdy
from services.common.spdy.connection import STREAM_LIMIT, Connection
from services.common.spdy.errors import GoAwayStatus, PeerGoneError, ResetStatus, SpdyError
from services.common.spdy.groups import first_of
from services.common.spdy.wire import Wire

T = TypeVar("T")

STREAM_BYTES: Final = 512 * 1024
HELD_BYTES: Final = 4 << 20
OUTPUT_BYTES: Final = 128 * 1024
ANSWER_BYTES: Final = 128 * 1024
FRAME_BYTES: Final = 32 * 1024
_GOODBYE_SECONDS: Final = 2.0


class StreamResetError(ConnectionError):
    """The stream was ended at once, by the peer or because its connection has gone."""


class Signal:
    """Wakes all who wait, each time anew."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        await self._event.wait()

    def notify(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()


class SpdyStream:
    """One stream. Its reader and its writer may be different tasks; each half has one."""

    def __init__(self, link: Multiplexer, stream_id: int, headers: Mapping[str, str]) -> None:
        self._link = link
        self.stream_id = stream_id
        self.headers = headers
        self.buffer = bytearray()
        self.changed = Signal()
        self.replied = False
        self.ended = False
        self.local_ended = False
        self.was_reset = False

    async def read(self) -> bytes:
        """Return what has come, b"" at the end of the peer's half. Raises `StreamResetError`."""
        while not self.buffer:
            if self.ended:
                return b""
            if self.was_reset:
                raise StreamResetError(f"stream {self.stream_id} was reset")
            await self.changed.wait()
        data = bytes(self.buffer)
        self.buffer.clear()
        self._link.consumed(self, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send data of any length; waits for room. Raises `StreamResetError`."""
        view = memoryview(data)
        while view:
            room = await self._link.room(self)
            self._link.send(self, bytes(view[: min(room, FRAME_BYTES)]))
            view = view[min(room, FRAME_BYTES) :]

    def end(self) -> None:
        """End our half. May be repeated."""
        self._link.send(self, b"", fin=True)

    def reset(self, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """End both halves at once. May be repeated."""
        self.was_reset = True
        self.changed.notify()
        self._link.drop(self, status)

    async def accepted(self) -> None:
        """Wait until the peer has accepted the stream. Raises `StreamResetError`."""
        while not self.replied:
            if self.was_reset:
                raise StreamResetError(f"stream {self.stream_id} was refused")
            await self.changed.wait()


class Multiplexer:
    """A connection's streams. `serve` runs it."""

    def __init__(self, wire: Wire, *, client: bool = False) -> None:
        self._wire = wire
        self._client = client
        self._connection = Connection(client=client)
        self._streams: dict[int, SpdyStream] = {}
        # Never full: two places are for the ends, the peer's goodbye and the connection's.
        self._opened: asyncio.Queue[SpdyStream | None] = asyncio.Queue(STREAM_LIMIT + 2)
        self._peer_said_goodbye = False
        self._output = asyncio.Event()
        self._sending = False
        self._turn = Signal()
        self._crowded: set[int] = set()
        self._held_bytes = 0
        self.activity_count = 0

    async def serve(self, body: Awaitable[T]) -> T:
        """Run `body` while the connection runs; say goodbye when it is done.

        Raises `PeerGoneError` when the peer goes or breaks the protocol first; `body` is then cancelled.
        """
        goodbye = GoAwayStatus.OK
        try:
            async with asyncio.TaskGroup() as group:
                loops = (group.create_task(self._read()), group.create_task(self._write()))
                result = await body
                self._connection.go_away()
                self._output.set()
                await self._flush_last()
                for loop in loops:
                    loop.cancel()
        except BaseExceptionGroup as errors:
            first = first_of(errors)
            goodbye = GoAwayStatus.PROTOCOL_ERROR if isinstance(first, SpdyError) else goodbye
            raise _gone(first) from errors
        finally:
            await self._say_goodbye(goodbye)
            self._end()
        return result

    async def accept(self) -> SpdyStream | None:
        """Return the peer's next stream, accepted; None when it begins no more."""
        return await self._opened.get()

    def open(self, headers: Mapping[str, str]) -> SpdyStream:
        """Begin a stream."""
        stream = SpdyStream(self, self._connection.open_stream(headers), headers)
        self._streams[stream.stream_id] = stream
        self._output.set()
        return stream

    async def flush(self) -> None:
        """Wait until all that was sent lies on the wire."""
        while self._connection.pending_bytes or self._sending:
            await self._turn.wait()

    async def _flush_last(self) -> None:
        """Flush; a client does not wait for long: a server that reads no more would never let it go."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS if self._client else None):
                await self.flush()

    async def ping(self) -> None:
        """Ask whether the peer is there; the answer counts as no activity."""
        self._connection.ping()
        self._output.set()

    def send(self, stream: SpdyStream, data: bytes, *, fin: bool = False) -> None:
        """Queue data within `room`, or an end."""
        self.activity_count += 1
        self._connection.send(stream.stream_id, data, fin=fin)
        self._output.set()
        if fin:
            stream.local_ended = True
            self._forget_ended(stream)

    async def room(self, stream: SpdyStream) -> int:
        """Wait until some bytes may be sent; return how many. Raises `StreamResetError`."""
        while True:
            if stream.was_reset or (stream.ended and stream.local_ended):
                raise StreamResetError(f"stream {stream.stream_id} is over")
            room = self._connection.room(stream.stream_id)
            if room > 0 and self._connection.pending_bytes < OUTPUT_BYTES:
                return room
            await self._turn.wait()

    def consumed(self, stream: SpdyStream, count: int) -> None:
        """Tell the peer that there is room again."""
        self._connection.consumed(stream.stream_id, count)
        self._output.set()
        self._release(stream, count)

    def drop(self, stream: SpdyStream, status: ResetStatus) -> None:
        """Reset a stream and forget it; what had come is thrown away."""
        self._connection.reset(stream.stream_id, status)
        self._output.set()
        self._discard(stream)

    def _discard(self, stream: SpdyStream) -> None:
        self._streams.pop(stream.stream_id, None)
        self._release(stream, len(stream.buffer))
        stream.buffer.clear()
        self._turn.notify()

    def _release(self, stream: SpdyStream, count: int) -> None:
        self._held_bytes -= count
        self._crowded.discard(stream.stream_id)
        self._turn.notify()

    def _forget_ended(self, stream: SpdyStream) -> None:
        if stream.ended and stream.local_ended:
            self._streams.pop(stream.stream_id, None)

    async def _read(self) -> None:
        while data := await self._wire.receive():
            for event in self._connection.receive(data):
                self._handle(event)
            self._output.set()
            if self._connection.pending_bytes > ANSWER_BYTES + OUTPUT_BYTES:
                raise SpdyError("the peer asks and does not read the answers")
            while self._crowded or self._held_bytes > HELD_BYTES:
                await self._turn.wait()
        raise PeerGoneError("the connection ended")

    async def _write(self) -> None:
        taken = True
        while True:
            await self._output.wait()
            self._output.clear()
            if (output := self._connection.take_output()) and taken:
                self._sending = True
                taken = await self._sent(output)
                self._sending = False
            self._turn.notify()

    async def _sent(self, output: bytes) -> bool:
        """Send; tell a client whether the peer still takes. Raises `ConnectionError` at a server."""
        try:
            await self._wire.send(output)
        except ConnectionError:
            if not self._client:
                raise
            # What a server told before it cut the connection may not have been read yet; its end is read.
            return False
        return True

    def _handle(self, event: spdy.Event) -> None:
        match event:
            case spdy.StreamOpened(stream_id, headers, fin):
                self._accept(SpdyStream(self, stream_id, headers), fin=fin)
            case spdy.RoomGrew():
                self._turn.notify()
            case spdy.PingAnswered():
                pass
            case spdy.PeerGoesAway():
                if not self._peer_said_goodbye:
                    self._peer_said_goodbye = True
                    self._opened.put_nowait(None)
            case _:
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    self._tell(stream, event)

    def _accept(self, stream: SpdyStream, *, fin: bool) -> None:
        # The connection limits those that are open; those that were given up wait here, too.
        if self._opened.qsize() >= STREAM_LIMIT:
            raise SpdyError("more streams than are taken")
        self._streams[stream.stream_id] = stream
        stream.ended = fin
        self._connection.reply(stream.stream_id)
        self._opened.put_nowait(stream)
        self.activity_count += 1

    def _tell(self, stream: SpdyStream, event: spdy.Event) -> None:
        match event:
            case spdy.DataReceived(stream_id, data):
                self.activity_count += 1
                stream.buffer += data
                self._held_bytes += len(data)
                if len(stream.buffer) > STREAM_BYTES:
                    self._crowded.add(stream_id)
            case spdy.StreamReplied():
                stream.replied = True
            case spdy.StreamEnded():
                stream.ended = True
                self._forget_ended(stream)
            case spdy.StreamReset():
                stream.was_reset = True
                if self._client:
                    # Go's server resets what it has told to the end; that may not have been read yet.
                    self._streams.pop(stream.stream_id, None)
                    self._turn.notify()
                else:
                    # What it held was for nobody.
                    self._discard(stream)
        stream.changed.notify()

    async def _say_goodbye(self, status: GoAwayStatus) -> None:
        self._connection.go_away(status)
        output = self._connection.take_output()
        if not output or self._sending:
            return
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self._wire.send(output)
        except (OSError, TimeoutError):
            return

    def _end(self) -> None:
        for stream in tuple(self._streams.values()):
            stream.was_reset = True
            stream.changed.notify()
        self._streams.clear()
        self._opened.put_nowait(None)
        self._turn.notify()


def _gone(error: BaseException) -> BaseException:
    """Turn what ends a connection into `PeerGoneError`; leave the rest."""
    if isinstance(error, SpdyError | ConnectionError):
        return PeerGoneError(str(error) or type(error).__name__)
    return error
