"""Header blocks: names and values, compressed over all blocks of a direction. No I/O.

Rules:

- A block is a count, then for each header the name and the value, each with its length; numbers have 32 bits.
  Names are lower case, not empty, and occur once.
- Each direction is one zlib stream, flushed at each block's end, that starts with a dictionary known to both.
- Nothing that a peer claims is believed: what a block grows to is capped while it is inflated, and counts and
  lengths are held against the bytes that are there before anything is made of them (as CVE-2026-35469 shows
  for the Go library).

Source: SPDY Protocol, Draft 3.1, 2.6.10 "Name/Value Header Block" and 2.6.10.1 "Compression".
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from services.common.spdy.errors import SpdyError

Headers = Mapping[str, str]

BLOCK_BYTES: Final = 32 * 1024
"""Most that a block may grow to."""

HEADER_COUNT: Final = 64
"""Most headers in a block."""

_NUMBER_BYTES: Final = 4
# Little memory for each connection: our blocks are far smaller than this window.
_WINDOW_BITS: Final = 11
_MEMORY_LEVEL: Final = 1

_COUNTED_WORDS: Final = (
    "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|"
    "accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|"
    "content-language|content-length|content-location|content-md5|content-range|content-type|date|etag|"
    "expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|"
    "last-modified|location|max-forwards|pragma|proxy-authenticate|proxy-authorization|range|referer|"
    "retry-after|server|te|trailer|transfer-encoding|upgrade|user-agent|vary|via|warning|"
    "www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|keep-alive|"
    "origin"
)
_PLAIN_WORDS: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _counted(text: bytes) -> bytes:
    return len(text).to_bytes(_NUMBER_BYTES, "big") + text


DICTIONARY: Final = (
    b"".join(_counted(word.encode()) for word in _COUNTED_WORDS.split("|")) + _PLAIN_WORDS.encode()
)
"""What both zlib streams start with."""


class HeaderWriter:
    """Compresses the blocks of one direction, in order."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(
            wbits=_WINDOW_BITS, memLevel=_MEMORY_LEVEL, level=zlib.Z_BEST_SPEED, zdict=DICTIONARY
        )

    def write(self, headers: Headers) -> bytes:
        """Return the next block."""
        plain = len(headers).to_bytes(_NUMBER_BYTES, "big") + b"".join(
            _counted(name.lower().encode()) + _counted(value.encode()) for name, value in headers.items()
        )
        return self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


class HeaderReader:
    """Inflates the blocks of one direction, in order."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def read(self, block: bytes) -> dict[str, str]:
        """Return the block's headers. Raises `SpdyError`; then no later block can be read either."""
        try:
            plain = self._inflate.decompress(block, BLOCK_BYTES + 1)
        except zlib.error as err:
            raise SpdyError(f"a header block that zlib cannot read: {err}") from err
        if len(plain) > BLOCK_BYTES or self._inflate.unconsumed_tail:
            raise SpdyError(f"a header block of more than {BLOCK_BYTES} bytes")
        if self._inflate.eof:
            raise SpdyError("a header block that ends the compression")
        return parse(plain)


def parse(plain: bytes) -> dict[str, str]:
    """Read an inflated block. Raises `SpdyError`."""
    fields = _Fields(plain)
    count = fields.number()
    if count > HEADER_COUNT:
        raise SpdyError(f"a header block of {count} headers")
    found: dict[str, str] = {}
    for _ in range(count):
        name, value = fields.text(), fields.text()
        if not name or name != name.lower() or name in found:
            raise SpdyError("a header's name that is empty, not lower case or not the first of its kind")
        found[name] = value
    if fields.left:
        raise SpdyError(f"{fields.left} bytes after a header block")
    return found


class _Fields:
    """Takes numbers and texts from the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self) -> int:
        return int.from_bytes(self._take(_NUMBER_BYTES), "big")

    def text(self) -> str:
        return self._take(self.number()).decode("utf-8", errors="replace")

    def _take(self, count: int) -> bytes:
        if count > self.left:
            raise SpdyError("a header block that claims more than it has")
        self._at += count
        return self._data[self._at - count : self._at]
