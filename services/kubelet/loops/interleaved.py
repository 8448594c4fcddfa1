"""Several streams as one, in the order in which they yield."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def interleaved(*streams: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield what any of the streams yields, until all have ended. What one raises is raised."""
    ahead = {asyncio.ensure_future(_next(stream)): stream for stream in streams}  # noqa: TID251  # ended below
    try:
        while ahead:
            done, _ = await asyncio.wait(ahead, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream = ahead.pop(task)
                for value in task.result():
                    ahead[asyncio.ensure_future(_next(stream))] = stream  # noqa: TID251  # ended below
                    yield value
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)
        for stream in streams:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()


async def _next(stream: AsyncIterator[T]) -> list[T]:
    """Return the next item in a list; an empty one at the end."""
    try:
        return [await anext(stream)]
    except StopAsyncIteration:
        return []
