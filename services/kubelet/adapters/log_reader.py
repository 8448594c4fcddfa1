"""Read a container's log file: from its end, from a time, or on and on.

A pod that mounts the folder of logs could lay anything in the file's place: see `beneath`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from services.common.beneath import open_file
from services.kubelet.core.logs import LogEntry, parse, tail_offset

_BLOCK_BYTES = 1 << 16
_POLL_SECONDS = 0.1
_LINE_LIMIT_BYTES = 1 << 20


async def read(
    root: Path,
    path: Path,
    *,
    tail_lines: int | None,
    since: str,
    follow: Callable[[], Awaitable[bool]] | None,
) -> AsyncIterator[LogEntry]:
    """Yield entries, the oldest first.

    `since` is a time in the entries' own form, or empty. `follow` says whether the
    container may still write; None means that what is there is all. `root` is the folder
    of all logs. Raises `OSError`, of which `Refused` is one.
    """
    descriptor = await asyncio.to_thread(open_file, root, path, alone=True)
    try:
        offset = 0 if tail_lines is None else await asyncio.to_thread(_tail, descriptor, tail_lines)
        rest, moved = b"", False
        while True:
            may_grow = await follow() if follow else False
            block = await asyncio.to_thread(os.pread, descriptor, _BLOCK_BYTES, offset)
            offset += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                entry = parse(line)
                if entry is not None and entry.time >= since:
                    yield entry
            if len(rest) > _LINE_LIMIT_BYTES:
                rest = b""
            if block:
                continue
            if moved:
                descriptor, offset = await _opened(root, path, descriptor)
                moved = False
                continue
            # Nobody writes to a file any more once its path holds another: read it to its end.
            moved = await _is_moved(path, descriptor) if may_grow or follow else False
            if not moved and not may_grow:
                return
            if not moved:
                await asyncio.sleep(_POLL_SECONDS)
    finally:
        os.close(descriptor)


async def _is_moved(path: Path, descriptor: int) -> bool:
    """Tell whether the path holds another file by now."""
    try:
        fresh = await asyncio.to_thread(path.lstat)
    except OSError:
        return False
    return fresh.st_ino != os.fstat(descriptor).st_ino


async def _opened(root: Path, path: Path, descriptor: int) -> tuple[int, int]:
    """Go on at the beginning of the file that the path holds."""
    opened = await asyncio.to_thread(open_file, root, path, alone=True)
    os.close(descriptor)
    return opened, 0


def _tail(descriptor: int, count: int) -> int:
    """Find where the last lines begin, reading from the end."""
    size = os.fstat(descriptor).st_size
    if count <= 0:
        return size
    span = _BLOCK_BYTES
    while True:
        begin = max(0, size - span)
        found = tail_offset(os.pread(descriptor, size - begin, begin), count)
        if found is not None:
            return begin + found
        if begin == 0:
            return 0
        span *= 4
