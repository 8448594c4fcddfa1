"""Read CRI log files: entries from lines. Pure.

Source: Kubernetes design "CRI log format".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENTRY = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([FP])(?: |$)"
)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry. `time` is RFC 3339 with up to nine digits of a second."""

    time: str
    stderr: bool
    line: bytes
    partial: bool


def parse(line: bytes) -> LogEntry | None:
    """Read one line without its line feed; None for what is no entry."""
    match = _ENTRY.match(line)
    if match is None:
        return None
    return LogEntry(match[1].decode(), match[2] == b"stderr", line[match.end() :], match[3] == b"P")


def tail_offset(block: bytes, count: int) -> int | None:
    """Return where the last `count` lines of a block begin; None when the block has fewer."""
    end = len(block) - 1 if block.endswith(b"\n") else len(block)
    for _ in range(count):
        end = block.rfind(b"\n", 0, end)
        if end < 0:
            return None
    return end + 1
