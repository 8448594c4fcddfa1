"""A proxy before an engine's socket, that is slow, refuses, and edits what the engine answers.

It speaks just enough HTTP: each request of a client goes to the engine over a
connection of its own. What is not edited, streams and raw connections too, passes
as it is.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LENGTH = re.compile(rb"(?im)^content-length:\s*(\d+)")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding:\s*chunked")
_CONNECTION = re.compile(rb"(?im)^connection:[^\r]*\r\n")
_UPGRADE = re.compile(rb"(?im)^upgrade:")
_STREAMS = re.compile(r"/(logs|events|attach)(\?|$)|/exec/\w+/start")
Edit = Callable[[str, Any], Any]


@dataclass
class EngineProxy:
    """Settings of the proxy, which may change at any time, and what it counted.

    `delay_seconds` comes before each request. `refuse` returns the status to answer
    with instead of asking, 0 to ask, for a method and a path. `edit` takes a path
    and the engine's answer as JSON, and returns what the client gets.
    """

    socket: Path
    target: Path
    delay_seconds: float = 0.0
    refuse: Callable[[str, str], int] = lambda _method, _path: 0
    edit: Edit | None = None
    edits: Callable[[str, str], bool] = lambda _method, _path: False
    asked: list[str] = field(default_factory=list)
    open_count: int = 0
    most_open_count: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def host(self) -> str:
        """Where a client finds it."""
        return f"unix://{self.socket}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client's connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # Cancelled by `end` alone, which waits for nothing more.
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; tells whether the connection can take another."""
        head = await reader.readuntil(b"\r\n\r\n")
        body = await _body(reader, head)
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        self.asked.append(f"{method} {path}")
        with self._counted(path):
            await asyncio.sleep(self.delay_seconds)
            status = self.refuse(method, path)
            if status:
                writer.write(_answer(status, b'{"message":"told so by a test"}'))
                await writer.drain()
                return True
            near, far = await asyncio.open_unix_connection(str(self.target))
            try:
                if not _UPGRADE.search(head):
                    head = _CONNECTION.sub(b"", head)[:-2] + b"Connection: close\r\n\r\n"
                far.write(head + body)
                await far.drain()
                if self.edit is not None and self.edits(method, path):
                    answer = await near.read()
                    writer.write(self._edited(path, answer))
                    await writer.drain()
                    return True
                await _pass(reader, writer, near, far)
                return False
            finally:
                far.close()

    def _counted(self, path: str) -> Any:
        return nullcontext() if _STREAMS.search(path) else _Count(self)

    def _edited(self, path: str, answer: bytes) -> bytes:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if _CHUNKED.search(head):
            body = _joined(body)
        assert self.edit is not None
        return _answer(status, json.dumps(self.edit(path, json.loads(body))).encode())

    async def end(self) -> None:
        """End all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Count:
    def __init__(self, proxy: EngineProxy) -> None:
        self._proxy = proxy

    def __enter__(self) -> None:
        self._proxy.open_count += 1
        self._proxy.most_open_count = max(self._proxy.most_open_count, self._proxy.open_count)

    def __exit__(self, *_: object) -> None:
        self._proxy.open_count -= 1


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if _CHUNKED.search(head):
        parts = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            parts += line + await reader.readexactly(int(line, 16) + 2)
            if int(line, 16) == 0:
                return parts
    found = _LENGTH.search(head)
    return await reader.readexactly(int(found[1])) if found else b""


def _joined(chunked: bytes) -> bytes:
    whole = b""
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        whole += chunked[: int(size, 16)]
        chunked = chunked[int(size, 16) + 2 :]
    return whole


def _answer(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} Told\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _pass(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    near: asyncio.StreamReader,
    far: asyncio.StreamWriter,
) -> None:
    """Copy both ways until the engine ends the connection, or the client does."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
            if target.can_write_eof():
                target.write_eof()

    async with asyncio.TaskGroup() as group:
        up = group.create_task(copy(reader, far))
        await copy(near, writer)
        up.cancel()


@asynccontextmanager
async def engine_proxy(socket: Path, target: Path) -> AsyncIterator[EngineProxy]:
    """Serve before an engine's socket for a block."""
    made = EngineProxy(socket, target)
    server = await asyncio.start_unix_server(made.serve, str(socket), limit=1 << 20)
    try:
        yield made
    finally:
        server.close()
        await made.end()
