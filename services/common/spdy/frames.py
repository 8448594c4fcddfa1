"""Frames of SPDY/3.1, read from bytes cut anywhere and written. No I/O.

Rules:

- Control frames are gathered whole, up to `CONTROL_BYTES`. Data is passed on as it comes, in pieces, so that
  a frame of 16 MiB needs no memory; only the last piece carries the end.
- Control frames of a kind that is not known are ignored, as the draft demands.
- Whatever breaks a rule is a `SpdyError`, after which nothing more is read.

Source: SPDY Protocol, Draft 3.1, 2.2 "Framing" and 2.6 "Control frames". CREDENTIAL is left out: no client of
Kubernetes sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from services.common.spdy.errors import SpdyError
from services.common.spdy.headers import HeaderReader, HeaderWriter

CONTROL_BYTES: Final = 64 * 1024
"""Most that a control frame may carry."""

INITIAL_WINDOW_SIZE: Final = 7
"""Id of the one setting that matters here."""

LARGEST_ID: Final = 0x7FFFFFFF

_VERSION: Final = 3
_HEAD_BYTES: Final = 8
_SETTING_BYTES: Final = 8
_FIN: Final = 1
_UNIDIRECTIONAL: Final = 2
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS = 1, 2, 3, 4
_PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class SynStream:
    """A stream begins."""

    stream_id: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    """A stream is accepted."""

    stream_id: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class RstStream:
    """A stream is over at once, both ways."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings: pairs of id and value."""

    values: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """A question, odd from a client and even from a server, or its answer."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """The sender takes no more streams."""

    last_stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class MoreHeaders:
    """Further headers of a stream."""

    stream_id: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """Room for more data: of a stream, or with id 0 of the connection."""

    stream_id: int
    delta: int


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of data of a stream; `fin` ends the sender's half."""

    stream_id: int
    data: bytes
    fin: bool = False


Frame = SynStream | SynReply | RstStream | Settings | Ping | GoAway | MoreHeaders | WindowUpdate | Data


class FrameReader:
    """Cuts one direction's bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._headers = HeaderReader()
        self._data_stream = 0
        self._data_fin = False
        self._data_left = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes and yield what is whole. Raises `SpdyError`."""
        self._buffer += data
        while True:
            if self._data_left:
                if not self._buffer:
                    return
                yield self._piece()
            elif len(self._buffer) < _HEAD_BYTES:
                return
            elif self._buffer[0] & 0x80:
                length = int.from_bytes(self._buffer[5:8], "big")
                if length > CONTROL_BYTES:
                    raise SpdyError(f"a control frame of {length} bytes")
                if len(self._buffer) < _HEAD_BYTES + length:
                    return
                frame = self._control(length)
                if frame is not None:
                    yield frame
            elif (empty := self._begin_data()) is not None:
                yield empty

    def _begin_data(self) -> Data | None:
        """Take the head of a data frame; return the frame when it is an empty one."""
        self._data_stream = _stream_id(self._buffer)
        self._data_fin = bool(self._buffer[4] & _FIN)
        self._data_left = int.from_bytes(self._buffer[5:8], "big")
        del self._buffer[:_HEAD_BYTES]
        return None if self._data_left else Data(self._data_stream, b"", self._data_fin)

    def _piece(self) -> Data:
        piece = bytes(self._buffer[: self._data_left])
        del self._buffer[: len(piece)]
        self._data_left -= len(piece)
        return Data(self._data_stream, piece, self._data_fin and not self._data_left)

    def _control(self, length: int) -> Frame | None:
        version = int.from_bytes(self._buffer[0:2], "big") & 0x7FFF
        kind = int.from_bytes(self._buffer[2:4], "big")
        flags = self._buffer[4]
        body = bytes(self._buffer[_HEAD_BYTES : _HEAD_BYTES + length])
        del self._buffer[: _HEAD_BYTES + length]
        if version != _VERSION:
            raise SpdyError(f"a frame of SPDY version {version}")
        read = self._readers.get(kind)
        if read is None:
            return None
        least, exact = _LENGTHS[kind]
        if length < least or (exact and length != least):
            raise SpdyError(f"a control frame of kind {kind} with {length} bytes")
        return read(self, flags, body)

    def _syn_stream(self, flags: int, body: bytes) -> Frame:
        headers = self._headers.read(body[10:])
        return SynStream(_stream_id(body), headers, bool(flags & _FIN), bool(flags & _UNIDIRECTIONAL))

    def _syn_reply(self, flags: int, body: bytes) -> Frame:
        return SynReply(_stream_id(body), self._headers.read(body[4:]), bool(flags & _FIN))

    def _more_headers(self, flags: int, body: bytes) -> Frame:
        return MoreHeaders(_stream_id(body), self._headers.read(body[4:]), bool(flags & _FIN))

    def _rst_stream(self, _: int, body: bytes) -> Frame:
        return RstStream(_stream_id(body), int.from_bytes(body[4:], "big"))

    def _settings(self, _: int, body: bytes) -> Frame:
        count = int.from_bytes(body[:4], "big")
        if count * _SETTING_BYTES != len(body) - 4:
            raise SpdyError(f"{count} settings in {len(body) - 4} bytes")
        starts = range(4, len(body), _SETTING_BYTES)
        return Settings(
            tuple(
                (int.from_bytes(body[at + 1 : at + 4], "big"), int.from_bytes(body[at + 4 : at + 8], "big"))
                for at in starts
            )
        )

    def _ping(self, _: int, body: bytes) -> Frame:
        return Ping(int.from_bytes(body, "big"))

    def _go_away(self, _: int, body: bytes) -> Frame:
        return GoAway(_number31(body), int.from_bytes(body[4:], "big"))

    def _window_update(self, _: int, body: bytes) -> Frame:
        return WindowUpdate(_number31(body), _number31(body[4:]))

    _readers: Final[Mapping[int, Callable[[FrameReader, int, bytes], Frame]]] = {
        _SYN_STREAM: _syn_stream,
        _SYN_REPLY: _syn_reply,
        _RST_STREAM: _rst_stream,
        _SETTINGS: _settings,
        _PING: _ping,
        _GOAWAY: _go_away,
        _HEADERS: _more_headers,
        _WINDOW_UPDATE: _window_update,
    }


# Least bytes of a control frame's body, and whether it may have no more.
_LENGTHS: Final = {
    _SYN_STREAM: (10, False),
    _SYN_REPLY: (4, False),
    _RST_STREAM: (8, True),
    _SETTINGS: (4, False),
    _PING: (4, True),
    _GOAWAY: (8, True),
    _HEADERS: (4, False),
    _WINDOW_UPDATE: (8, True),
}


class FrameWriter:
    """Renders one direction's frames, in order: header blocks depend on those before."""

    def __init__(self) -> None:
        self._headers = HeaderWriter()

    def write(self, frame: Frame) -> bytes:
        """Return the frame's bytes."""
        match frame:
            case Data(stream_id, data, fin):
                return _number(stream_id) + bytes([_FIN if fin else 0]) + len(data).to_bytes(3, "big") + data
            case SynStream(stream_id, headers, fin, unidirectional):
                flags = _FIN * fin | _UNIDIRECTIONAL * unidirectional
                return _control(
                    _SYN_STREAM, _number(stream_id) + bytes(6) + self._headers.write(headers), flags
                )
            case SynReply(stream_id, headers, fin):
                return _control(_SYN_REPLY, _number(stream_id) + self._headers.write(headers), _FIN * fin)
            case MoreHeaders(stream_id, headers, fin):
                return _control(_HEADERS, _number(stream_id) + self._headers.write(headers), _FIN * fin)
            case RstStream(stream_id, status):
                return _control(_RST_STREAM, _number(stream_id) + _number(status))
            case Settings(values):
                pairs = b"".join(_number(name) + _number(value) for name, value in values)
                return _control(_SETTINGS, _number(len(values)) + pairs)
            case Ping(ping_id):
                return _control(_PING, _number(ping_id))
            case GoAway(last_stream_id, status):
                return _control(_GOAWAY, _number(last_stream_id) + _number(status))
            case WindowUpdate(stream_id, delta):
                return _control(_WINDOW_UPDATE, _number(stream_id) + _number(delta))


def _control(kind: int, body: bytes, flags: int = 0) -> bytes:
    head = (0x8000 | _VERSION).to_bytes(2, "big") + kind.to_bytes(2, "big")
    return head + bytes([flags]) + len(body).to_bytes(3, "big") + body


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _number31(data: bytes | bytearray) -> int:
    return int.from_bytes(data[:4], "big") & LARGEST_ID


def _stream_id(data: bytes | bytearray) -> int:
    found = _number31(data)
    if not found:
        raise SpdyError("a frame of stream 0")
    return found
