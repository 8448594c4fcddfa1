"""Terminal sizes as clients send them: JSON objects with `Width` and `Height`. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

_SIDE_LIMIT: Final = 65535
_OBJECT_BYTES: Final = 1024


class SizeError(ValueError):
    """Bytes that are no terminal size."""


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The terminal changed its size; each side is from 1 to 65535."""

    width: int
    height: int


def parse_size(data: bytes) -> TerminalSize | None:
    """Read one size; None for one that a client without a terminal reports. Raises `SizeError`."""
    try:
        size = json.loads(data)
        width, height = int(size["Width"]), int(size["Height"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        raise SizeError("a terminal size that is not {Width, Height}") from err
    # A client without a terminal reports zeros.
    if not (1 <= width <= _SIDE_LIMIT and 1 <= height <= _SIDE_LIMIT):
        return None
    return TerminalSize(width, height)


class SizeReader:
    """Reads sizes that follow each other in a stream cut anywhere."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[TerminalSize]:
        """Take bytes and return every size that is whole. Raises `SizeError`."""
        *whole, self._buffer = (self._buffer + data).split(b"}")
        if len(self._buffer) > _OBJECT_BYTES:
            raise SizeError(f"a terminal size of more than {_OBJECT_BYTES} bytes")
        sizes = (parse_size(part + b"}") for part in whole)
        return [size for size in sizes if size is not None]
