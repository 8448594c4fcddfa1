"""The engine's multiplexed streams: frames of an 8-byte header and a payload. Pure, sans-IO.

Source: Docker Engine API, "Attach to a container", stream format: one byte of
stream type (0 stdin, 1 stdout, 2 stderr), three zero bytes, the payload's length
as 32 bits big endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

STDOUT = 1
STDERR = 2
_HEADER_BYTES = 8
_HEADER = struct.Struct(">II")
# The engine cuts longer lines into parts of this size, and writes no line feed after a part.
PART_BYTES = 16_384


class FrameError(ValueError):
    """Bytes that no engine sends."""


class Demultiplexer:
    """Cuts a byte stream, fed in any pieces, into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take bytes and yield every frame that is whole: stream type and payload. Raises `FrameError`.

        To be read to its end before more is fed.
        """
        whole = self._rest + data if self._rest else data
        self._rest = b""
        place, size = 0, len(whole)
        while size - place >= _HEADER_BYTES:
            kind, length = _HEADER.unpack_from(whole, place)
            if kind >> 24 > STDERR or kind & 0xFFFFFF:
                raise FrameError(f"not a frame header: {whole[place : place + 8].hex()}")
            end = place + _HEADER_BYTES + length
            if end > size:
                break
            yield kind >> 24, whole[place + _HEADER_BYTES : end]
            place = end
        self._rest = whole[place:]


class PieceDemultiplexer:
    """Cuts the same stream into pieces as they come: no frame is held, however long it claims to be."""

    def __init__(self) -> None:
        self._head = b""
        self._kind = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take bytes and yield stream type and piece. Raises `FrameError`."""
        view = memoryview(data)
        while view:
            if self._left:
                piece = bytes(view[: self._left])
                self._left -= len(piece)
                view = view[len(piece) :]
                yield self._kind, piece
                continue
            missing = _HEADER_BYTES - len(self._head)
            self._head += bytes(view[:missing])
            view = view[missing:]
            if len(self._head) == _HEADER_BYTES:
                if self._head[0] > STDERR or self._head[1:4] != b"\0\0\0":
                    raise FrameError(f"not a frame header: {self._head.hex()}")
                self._kind, self._left = self._head[0], int.from_bytes(self._head[4:], "big")
                self._head = b""


class LineSplitter:
    """Cuts the stream of a container with a terminal, which has no frames, into lines."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take bytes and yield every whole line with its line feed, or part, as standard output.

        Each begins with its timestamp and a blank.
        """
        self._buffer += data
        while True:
            most = self._buffer.find(b" ", 0, PART_BYTES) + 1 + PART_BYTES
            end = self._buffer.find(b"\n", 0, most + 1) + 1 or (most if len(self._buffer) > most else 0)
            if not end:
                return
            line = bytes(self._buffer[:end])
            del self._buffer[:end]
            yield STDOUT, line

    def rest(self) -> Iterator[tuple[int, bytes]]:
        """Yield the part that is left at the end of a whole stream."""
        if self._buffer:
            yield STDOUT, bytes(self._buffer)
            self._buffer.clear()
