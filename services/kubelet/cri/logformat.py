"""CRI log files: `<RFC3339Nano> <stdout|stderr> <F|P> <content>`, one entry for each line. Pure.

Source: Kubernetes design "CRI log format". `P` marks a part of a line that goes on
in the next entry of its stream. The engine's timestamp is kept, so the file itself
says how far it was read: see `Cursor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ROTATED = re.compile(r"\.\d{8}-\d{6}")
NAMES = {1: b"stdout", 2: b"stderr"}
_ENTRY = re.compile(rb"(\S+) (stdout|stderr) ([FP]) ")
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
# What the engine writes: nine digits, which is what we keep.
_USUAL = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """How far one stream was written: the last timestamp, and how many entries have it."""

    time: str = ""
    count: int = 0

    def after(self, time: str) -> Cursor:
        """Return the cursor after one more entry."""
        return Cursor(time, self.count + 1 if time == self.time else 1)

    def after_all(self, times: Sequence[str]) -> Cursor:
        """Return the cursor after some more entries."""
        if not times:
            return self
        last, count = times[-1], 0
        for time in reversed(times):
            if time != last:
                return Cursor(last, count)
            count += 1
        return Cursor(last, count + (self.count if last == self.time else 0))

    def since(self) -> str:
        """Return the engine's `since`, seconds and nanoseconds as text; entries at that time come again."""
        return epoch(self.time) if self.time else "0"


class Skipper:
    """Drops the entries that a resumed stream brings again."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._seen = 0

    def is_new(self, time: str) -> bool:
        """Tell whether an entry at `time` was not written before."""
        if not self._cursor.time or time > self._cursor.time:
            return True
        if time < self._cursor.time:
            return False
        self._seen += 1
        return self._seen > self._cursor.count


def split(payload: bytes) -> tuple[str, bytes] | None:
    """Cut what the engine sent into timestamp and line; None when there is no timestamp."""
    stamp, blank, line = payload.partition(b" ")
    if blank and _USUAL.fullmatch(stamp):
        return stamp.decode(), line
    if not blank or not _TIME.fullmatch(stamp):
        return None
    return normal(stamp.decode()), line


def normal(stamp: str) -> str:
    """Write a time with nine digits of a second, so that text order is time order."""
    match = _TIME.fullmatch(stamp.encode())
    if match is None:
        raise ValueError(f"not a time: {stamp}")
    seconds, fraction, zone = match.groups()
    return f"{seconds.decode()}.{(fraction or b'').decode().ljust(9, '0')}{zone.decode()}"


def entry(time: str, stream: int, line: bytes) -> bytes:
    """Format one entry. A line without its line feed is a part."""
    whole = line.endswith(b"\n")
    tag = b"F" if whole else b"P"
    return b"%s %s %s %s\n" % (time.encode(), NAMES[stream], tag, line[:-1] if whole else line)


def cursors(tail: bytes) -> dict[int, Cursor]:
    """Read the cursor of each stream from the end of a log file; a last line cut short does not count."""
    found: dict[int, Cursor] = {}
    streams = {name: number for number, name in NAMES.items()}
    for line in tail.split(b"\n")[:-1]:
        match = _ENTRY.match(line)
        if match:
            number = streams[match[2]]
            found[number] = found.get(number, Cursor()).after(match[1].decode())
    return found


def rotated(names: Iterable[str], active: str) -> list[str]:
    """Return the files that the kubelet moved away from `active`, the oldest first."""
    return sorted(
        name for name in names if name.startswith(active) and _ROTATED.fullmatch(name[len(active) :])
    )


def epoch(stamp: str) -> str:
    """Convert a UTC time with nine digits to `SECONDS.NANOSECONDS`."""
    from datetime import datetime

    whole, _, fraction = stamp.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return f"{seconds}.{fraction[:9].ljust(9, '0')}"
