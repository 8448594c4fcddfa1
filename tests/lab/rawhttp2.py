"""A client of HTTP/2 that writes frames as it likes. Source: RFC 9113 and RFC 7541."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING = 0, 1, 3, 4, 6
_END_STREAM = 1
_END_HEADERS = 4
_CANCEL = 8


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _text(value: str) -> bytes:
    """Write a string without Huffman coding; at most 126 bytes."""
    assert len(value) < 127
    return bytes((len(value),)) + value.encode()


def _header(name: str, value: str) -> bytes:
    """Write a literal header field that is never indexed."""
    return b"\x10" + _text(name) + _text(value)


class RawConnection:
    """One connection to a unix socket. What the server says is read only where it is asked for."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._stream = 1
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._buffer = bytearray()
        self.hung_up = False

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._socket))
        self._buffer += _PREFACE + _frame(_SETTINGS, 0, 0, b"")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._writer is not None
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def open(self, method: str, *, reset: bool = False, message: bytes | None = None) -> None:
        """Begin a call; send its whole request, or reset it at once, where wanted."""
        fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
        fields |= {"te": "trailers", "content-type": "application/grpc"}
        block = b"".join(_header(name, value) for name, value in fields.items())
        self._buffer += _frame(_HEADERS, _END_HEADERS, self._stream, block)
        if message is not None:
            data = b"\0" + struct.pack(">I", len(message)) + message
            self._buffer += _frame(_DATA, _END_STREAM, self._stream, data)
        if reset:
            self._buffer += _frame(_RST_STREAM, 0, self._stream, struct.pack(">I", _CANCEL))
        self._stream += 2

    async def read_until(self, word: bytes) -> bytes:
        """Read until a word was said; return all of it."""
        assert self._reader is not None
        said = b""
        while word not in said:
            part = await self._reader.read(65_536)
            assert part, f"the server hung up: {said!r}"
            said += part
        return said

    def ping(self) -> None:
        """Ask for an answer that is not read."""
        self._buffer += _frame(_PING, 0, 0, bytes(8))

    async def flush(self) -> None:
        """Write what was said so far; nothing more once the server hung up, or takes nothing for a second."""
        assert self._writer is not None
        data, self._buffer = bytes(self._buffer), bytearray()
        if self.hung_up:
            return
        try:
            self._writer.write(data)
            async with asyncio.timeout(1):
                await self._writer.drain()
        except (OSError, TimeoutError):
            self.hung_up = True
