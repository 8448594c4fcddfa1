"""Long streams of an engine: what comes while nobody reads is neither lost nor read byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.kubelet.cri.enginestream import EngineStreams

pytestmark = pytest.mark.asyncio
LIMIT_SECONDS = 20


@asynccontextmanager
async def engine(
    folder: Path, write: Callable[[web.StreamResponse], Awaitable[None]]
) -> AsyncIterator[EngineStreams]:
    """Serve one log over a unix socket."""

    async def logs(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await write(answer)
        return answer

    app = web.Application()
    app.router.add_get("/v1.41/containers/x/logs", logs)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "e.sock")).start()
    streams = EngineStreams(f"unix://{folder}/e.sock", "1.41")
    try:
        yield streams
    finally:
        await streams.close()
        await runner.cleanup()


async def test_what_comes_during_a_rest_comes_as_one_piece(tmp_path: Path) -> None:
    """Fifty lines, one wakeup; the end is seen after the last of them."""
    resting, written = asyncio.Event(), asyncio.Event()

    async def write(answer: web.StreamResponse) -> None:
        await answer.write(b"first\n")
        await resting.wait()
        for number in range(50):
            await answer.write(b"%d\n" % number)
        written.set()

    async def rest() -> None:
        resting.set()
        await written.wait()

    async with asyncio.timeout(LIMIT_SECONDS), engine(tmp_path, write) as streams:
        pieces = [piece async for piece in streams.logs("x", "stdout", since="0", follow=True, rest=rest)]

    assert pieces == [b"first\n", b"".join(b"%d\n" % number for number in range(50))]


async def test_a_stream_that_brings_much_has_no_rest(tmp_path: Path) -> None:
    """More than fits into any buffer comes whole, in whatever pieces, with few rests."""
    rests = 0
    line = b"z" * 9_999 + b"\n"

    async def write(answer: web.StreamResponse) -> None:
        for _ in range(600):
            await answer.write(line)

    async def rest() -> None:
        nonlocal rests
        rests += 1

    async with asyncio.timeout(LIMIT_SECONDS), engine(tmp_path, write) as streams:
        size = 0
        async for piece in streams.logs("x", "stdout", since="0", follow=True, rest=rest):
            size += len(piece)

    assert size == 600 * len(line)
    assert rests < 600
