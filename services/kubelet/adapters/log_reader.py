"""Read a container's log: from its end, from a time, or on and on; what was rotated away is part of it.

A pod that mounts the folder of logs could lay anything in the file's place: see `beneath`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.common.beneath import open_file
from services.kubelet.core.log_files import rotated
from services.kubelet.core.logs import LogEntry, parse, tail_offset

_BLOCK_BYTES = 1 << 16
_POLL_SECONDS = 0.1
_LINE_LIMIT_BYTES = 1 << 20
Follow = Callable[[], Awaitable[bool]]
T = TypeVar("T")


async def read(
    root: Path, path: Path, *, tail_lines: int | None, since: str, follow: Follow | None
) -> AsyncIterator[LogEntry]:
    """Yield entries, the oldest first.

    `since` is a time in the entries' own form, or empty. The rest is as in `batches`.
    """
    async for entries in batches(root, path, tail_lines=tail_lines, follow=follow):
        for entry in entries:
            if entry.time >= since:
                yield entry


async def batches(
    root: Path, path: Path, *, tail_lines: int | None, follow: Follow | None
) -> AsyncIterator[list[LogEntry]]:
    """Yield entries as they are read, some at a time, the oldest first; at first none, once the log is open.

    `follow` says whether the container may still write; None means that what is there is
    all. `root` is the folder of all logs. Raises `OSError`, of which `Refused` is one.
    """
    with ExitStack() as stack:
        parts = await _opened(stack, partial(_parts, root, path, tail_lines, stack))
        yield []
        for part in parts[:-1]:
            async for entries in _whole(part):
                yield entries
        async for entries in _growing(root, path, parts[-1], stack, follow):
            yield entries


@dataclass(slots=True)
class _Part:
    """One file of a log, and where in it to go on reading; `rest` is a line that has no end yet."""

    descriptor: int
    offset: int
    rest: bytes = b""

    async def next(self) -> tuple[bool, list[LogEntry]]:
        """Read a block; returns whether there was any, and the entries that it completed."""
        block = await asyncio.to_thread(os.pread, self.descriptor, _BLOCK_BYTES, self.offset)
        self.offset += len(block)
        *lines, rest = (self.rest + block).split(b"\n")
        self.rest = rest if len(rest) <= _LINE_LIMIT_BYTES else b""
        return bool(block), [entry for entry in map(parse, lines) if entry is not None]


async def _whole(part: _Part) -> AsyncIterator[list[LogEntry]]:
    more = True
    while more:
        more, entries = await part.next()
        if entries:
            yield entries


async def _growing(
    root: Path, path: Path, part: _Part, stack: ExitStack, follow: Follow | None
) -> AsyncIterator[list[LogEntry]]:
    """Read the file that is written; go on with the next one when it is rotated away."""
    moved = False
    while True:
        may_grow = await follow() if follow else False
        more, entries = await part.next()
        if entries:
            yield entries
        if more:
            continue
        if moved:
            part, moved = (
                _Part(await _opened(stack, partial(_next, root, path, part.descriptor, stack)), 0),
                False,
            )
            continue
        # Nobody writes to a file any more once its path holds another: read it to its end.
        moved = await _is_moved(path, part.descriptor) if follow else False
        if not moved and not may_grow:
            return
        if not moved:
            await asyncio.sleep(_POLL_SECONDS)


async def _opened(stack: ExitStack, work: Callable[[], T]) -> T:
    """Open files in a thread. It goes on when its caller goes; what it opens then is closed at its end."""
    working = asyncio.ensure_future(asyncio.to_thread(work))  # noqa: TID251  # ends by itself

    def ended(done: asyncio.Future[T]) -> None:
        stack.close()
        if not done.cancelled():
            done.exception()

    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        working.add_done_callback(ended)
        raise


async def _is_moved(path: Path, descriptor: int) -> bool:
    """Tell whether the path holds another file by now."""
    try:
        fresh = await asyncio.to_thread(path.lstat)
    except OSError:
        return False
    return fresh.st_ino != os.fstat(descriptor).st_ino


def _open(root: Path, path: Path, stack: ExitStack) -> int:
    """Open a file until the stack ends."""
    descriptor = open_file(root, path, alone=True)
    stack.callback(os.close, descriptor)
    return descriptor


def _next(root: Path, path: Path, descriptor: int, stack: ExitStack) -> int:
    """Open the file that follows one that was rotated away, and close that.

    A slow reader may be several files behind.
    """
    while True:
        names = _earlier(path)
        inodes = [_inode(path.with_name(name)) for name in names]
        ours = os.fstat(descriptor).st_ino
        after = inodes.index(ours) + 1 if ours in inodes else 0
        name = [*names, path.name][after]
        with ExitStack() as opened:
            try:
                found = _open(root, path.with_name(name), opened)
            except FileNotFoundError:
                if name != path.name:
                    continue  # It was too old.
                raise
            if _earlier(path) == names:
                stack.close()
                stack.push(opened.pop_all())
                return found


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return 0


def _parts(root: Path, path: Path, tail_lines: int | None, stack: ExitStack) -> list[_Part]:
    """Open what holds the log, the oldest first, and find where in it to begin."""
    active = _open(root, path, stack)
    left = tail_lines
    offset, left = _begin(active, left)
    parts = [_Part(active, offset)]
    for name in reversed(_earlier(path)):
        if left == 0:
            break
        # One that goes away now was too old; one that has two names now is just being rotated away.
        with suppress(OSError):
            descriptor = _open(root, path.with_name(name), stack)
            if os.fstat(descriptor).st_ino == os.fstat(parts[0].descriptor).st_ino:
                continue
            offset, left = _begin(descriptor, left)
            parts.insert(0, _Part(descriptor, offset))
    return parts


def _earlier(path: Path) -> list[str]:
    """Return the names of what was rotated away, the oldest first."""
    try:
        return rotated([found.name for found in path.parent.iterdir()], path.name)
    except OSError:
        return []


def _begin(descriptor: int, count: int | None) -> tuple[int, int | None]:
    """Find where the last lines begin, and how many of them an earlier file must have."""
    if count is None:
        return 0, None
    size = os.fstat(descriptor).st_size
    if count <= 0:
        return size, 0
    span = _BLOCK_BYTES
    while True:
        begin = max(0, size - span)
        block = os.pread(descriptor, size - begin, begin)
        found = tail_offset(block, count)
        if found is not None:
            return begin + found, 0
        if begin == 0:
            return 0, count - block.count(b"\n")
        span *= 4
