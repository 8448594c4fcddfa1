"""What a SPDY connection's frames mean: streams, windows, pings, the end. No I/O: bytes in, events out.

Rules:

- A client's streams have odd ids, a server's even ones; each new id is larger than those before. A stream
  ends for one side with FIN, for both with RST_STREAM.
- We honour the peer's windows, of each stream and of the connection, from the moment that it shows that it
  counts: by SETTINGS or by its first WINDOW_UPDATE. The library behind every client of Kubernetes written in
  Go never sends either, and would wait for ever for data beyond the first 64 KiB; there the transport's flow
  control must do.
- We give a stream room back when its data has been consumed, in halves of its window, and the connection as
  soon as data has come: a stream that nobody reads must not stop the others.
- A frame of a stream that has ended is ignored: the peer may not have known. One of a stream that never was
  answers with a reset.

Source: SPDY Protocol, Draft 3.1, 2.3 "Streams", 2.6 "Control frames", 2.8 "Flow control"; moby/spdystream for
what it leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from services.common.spdy import frames
from services.common.spdy.errors import GoAwayStatus, ResetStatus, SpdyError
from services.common.spdy.frames import Frame, FrameReader, FrameWriter

DRAFT_WINDOW_BYTES: Final = 64 * 1024
"""Every window at the start, until a SETTINGS says otherwise."""

WINDOW_BYTES: Final = 256 * 1024
"""How much of a stream we let come before it is consumed."""

CONNECTION_WINDOW_BYTES: Final = 1 << 20
"""How much we let come on all streams before we have looked at it."""

STREAM_LIMIT: Final = 512
"""Most streams of a peer at a time."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer began a stream; `reply` or `reset` answers."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """The peer accepted our stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Data came; tell `consumed` when it has been used."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer's half is over."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """A stream is over, both ways."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class RoomGrew:
    """`room` may have grown."""


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """Our ping came back."""


@dataclass(frozen=True, slots=True)
class PeerGoesAway:
    """The peer takes no more streams."""


Event = (
    StreamOpened
    | StreamReplied
    | DataReceived
    | StreamEnded
    | StreamReset
    | RoomGrew
    | PingAnswered
    | PeerGoesAway
)


class _State:
    """One stream: who still sends, and both windows."""

    def __init__(self, room: int, *, local_open: bool = True, remote_open: bool = True) -> None:
        self.local_open = local_open
        self.remote_open = remote_open
        self.room = room
        self.used = 0


class Connection:
    """One side of a connection. What it wants to send lies in `take_output`."""

    def __init__(self, *, client: bool = False, stream_limit: int = STREAM_LIMIT) -> None:
        self._reader = FrameReader()
        self._writer = FrameWriter()
        self._parity = 1 if client else 0
        self._stream_limit = stream_limit
        self._next_id = 1 if client else 2
        self._next_ping = 1 if client else 2
        self._last_peer_id = 0
        self._streams: dict[int, _State] = {}
        self._peer_counts = False
        self._initial_room = DRAFT_WINDOW_BYTES
        self._room = DRAFT_WINDOW_BYTES
        self._used = 0
        self._going = False
        self._output: list[bytes] = []
        self.pending_bytes = 0
        self._send(frames.Settings(((frames.INITIAL_WINDOW_SIZE, WINDOW_BYTES),)))
        self._send(frames.WindowUpdate(0, CONNECTION_WINDOW_BYTES - DRAFT_WINDOW_BYTES))

    def take_output(self) -> bytes:
        """Return what is to be sent, and forget it."""
        output = b"".join(self._output)
        self._output.clear()
        self.pending_bytes = 0
        return output

    @property
    def stream_count(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def receive(self, data: bytes) -> Iterator[Event]:
        """Take bytes and yield what happened. Raises `SpdyError`: say so with `go_away` and close."""
        for frame in self._reader.feed(data):
            yield from self._receive(frame)

    def open_stream(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Begin a stream; returns its id."""
        stream_id = self._next_id
        self._next_id += 2
        self._streams[stream_id] = _State(self._initial_room, local_open=not fin)
        self._send(frames.SynStream(stream_id, headers, fin))
        return stream_id

    def reply(self, stream_id: int) -> None:
        """Accept the peer's stream."""
        if stream_id in self._streams:
            self._send(frames.SynReply(stream_id))

    def reset(self, stream_id: int, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """End a stream at once. One that has ended is left alone."""
        if self._streams.pop(stream_id, None) is not None:
            self._send(frames.RstStream(stream_id, status))

    def send(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Send data within `room`, or end our half. A stream that has ended takes nothing."""
        state = self._streams.get(stream_id)
        if state is None or not state.local_open:
            return
        state.room -= len(data)
        self._room -= len(data)
        self._send(frames.Data(stream_id, data, fin))
        if fin:
            state.local_open = False
            self._forget_ended(stream_id, state)

    def room(self, stream_id: int) -> int:
        """Return how many bytes the peer takes now; at most 0 when it must first give room."""
        state = self._streams.get(stream_id)
        if state is None:
            return 0
        return min(state.room, self._room) if self._peer_counts else DRAFT_WINDOW_BYTES

    def consumed(self, stream_id: int, count: int) -> None:
        """Tell that a stream's data has been used; gives the peer room for more."""
        state = self._streams.get(stream_id)
        if state is None or not state.remote_open:
            return
        state.used += count
        if state.used >= WINDOW_BYTES // 2:
            self._send(frames.WindowUpdate(stream_id, state.used))
            state.used = 0

    def ping(self) -> None:
        """Ask whether the peer is there."""
        self._send(frames.Ping(self._next_ping))
        self._next_ping = self._next_ping + 2 if self._next_ping < frames.LARGEST_ID - 2 else self._parity + 2

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> None:
        """Say that we take no more streams. May be repeated."""
        if not self._going:
            self._going = True
            self._send(frames.GoAway(self._last_peer_id, status))

    def _send(self, frame: Frame) -> None:
        data = self._writer.write(frame)
        self._output.append(data)
        self.pending_bytes += len(data)

    def _receive(self, frame: Frame) -> Iterator[Event]:
        match frame:
            case frames.SynStream():
                yield from self._opened(frame)
            case frames.Data(stream_id, data, fin):
                yield from self._data(stream_id, data, fin=fin)
            case frames.SynReply(stream_id, _, fin) | frames.MoreHeaders(stream_id, _, fin):
                yield from self._told(stream_id, replied=isinstance(frame, frames.SynReply), fin=fin)
            case frames.RstStream(stream_id, _):
                if self._streams.pop(stream_id, None) is not None:
                    yield StreamReset(stream_id)
            case frames.WindowUpdate(stream_id, delta):
                yield from self._grow(stream_id, delta)
            case frames.Settings(values):
                yield from self._settings(values)
            case frames.Ping(ping_id):
                if ping_id % 2 == self._parity:
                    yield PingAnswered()
                else:
                    self._send(frame)
            case frames.GoAway():
                yield PeerGoesAway()

    def _opened(self, frame: frames.SynStream) -> Iterator[Event]:
        stream_id = frame.stream_id
        if stream_id % 2 == self._parity or stream_id <= self._last_peer_id:
            raise SpdyError(f"a new stream with id {stream_id}")
        self._last_peer_id = stream_id
        if self._going:
            return
        if len(self._streams) >= self._stream_limit:
            self._send(frames.RstStream(stream_id, ResetStatus.REFUSED_STREAM))
            return
        state = _State(self._initial_room, local_open=not frame.unidirectional, remote_open=not frame.fin)
        self._streams[stream_id] = state
        yield StreamOpened(stream_id, frame.headers, frame.fin)
        self._forget_ended(stream_id, state)

    def _told(self, stream_id: int, *, replied: bool, fin: bool) -> Iterator[Event]:
        state = self._streams.get(stream_id)
        if state is None:
            return
        if replied:
            yield StreamReplied(stream_id)
        if fin:
            yield from self._remote_end(stream_id, state)

    def _data(self, stream_id: int, data: bytes, *, fin: bool) -> Iterator[Event]:
        self._used += len(data)
        if self._used >= CONNECTION_WINDOW_BYTES // 2:
            self._send(frames.WindowUpdate(0, self._used))
            self._used = 0
        state = self._streams.get(stream_id)
        if state is None:
            if not self._was_opened(stream_id):
                self._send(frames.RstStream(stream_id, ResetStatus.INVALID_STREAM))
            return
        if not state.remote_open:
            self.reset(stream_id, ResetStatus.STREAM_ALREADY_CLOSED)
            yield StreamReset(stream_id)
            return
        if data:
            yield DataReceived(stream_id, data)
        if fin:
            yield from self._remote_end(stream_id, state)

    def _remote_end(self, stream_id: int, state: _State) -> Iterator[Event]:
        if state.remote_open:
            state.remote_open = False
            yield StreamEnded(stream_id)
            self._forget_ended(stream_id, state)

    def _grow(self, stream_id: int, delta: int) -> Iterator[Event]:
        if not delta:
            raise SpdyError("a window that grows by nothing")
        self._peer_counts = True
        if not stream_id:
            self._room += delta
            if self._room > frames.LARGEST_ID:
                raise SpdyError("a window of the connection that grows too large")
            yield RoomGrew()
            return
        state = self._streams.get(stream_id)
        if state is None:
            return
        state.room += delta
        if state.room > frames.LARGEST_ID:
            self.reset(stream_id, ResetStatus.FLOW_CONTROL_ERROR)
            yield StreamReset(stream_id)
        else:
            yield RoomGrew()

    def _settings(self, values: tuple[tuple[int, int], ...]) -> Iterator[Event]:
        for name, value in values:
            if name != frames.INITIAL_WINDOW_SIZE:
                continue
            if value > frames.LARGEST_ID:
                raise SpdyError(f"a first window of {value} bytes")
            self._peer_counts = True
            for state in self._streams.values():
                state.room += value - self._initial_room
            self._initial_room = value
            yield RoomGrew()

    def _was_opened(self, stream_id: int) -> bool:
        ours = stream_id % 2 == self._parity
        return stream_id < self._next_id if ours else stream_id <= self._last_peer_id

    def _forget_ended(self, stream_id: int, state: _State) -> None:
        if not state.local_open and not state.remote_open:
            self._streams.pop(stream_id, None)
