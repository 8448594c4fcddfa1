"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.kubelet.loops.interleaved import interleaved

pytestmark = pytest.mark.asyncio


async def stream(*values: int, ended: list[str] | None = None) -> AsyncIterator[int]:
    """Yield values, then wait for ever."""
    try:
        for value in values:
            yield value
        await asyncio.Event().wait()
    finally:
        if ended is not None:
            ended.append("ended")


async def short(*values: int) -> AsyncIterator[int]:
    """Yield values and end."""
    for value in values:
        yield value


async def test_all_that_any_yields_comes() -> None:
    """A stream that has nothing to say holds no other up."""
    found = interleaved(stream(1, 2), stream(), stream(3))

    assert sorted([await anext(found) for _ in range(3)]) == [1, 2, 3]
    await found.aclose()  # type: ignore[attr-defined]  # a generator


async def test_it_ends_with_the_last() -> None:
    """Streams may end one by one."""
    assert sorted([value async for value in interleaved(short(1), short(), short(2, 3))]) == [1, 2, 3]


async def test_whoever_leaves_ends_the_streams() -> None:
    """No task is left that waits for what nobody wants."""
    ended: list[str] = []
    found = interleaved(stream(1, ended=ended), stream(2, ended=ended))
    await anext(found)

    await found.aclose()  # type: ignore[attr-defined]  # a generator

    assert ended == ["ended", "ended"]


async def test_what_one_raises_is_raised() -> None:
    """A broken stream is not taken for a quiet one."""

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        _ = [value async for value in interleaved(broken(), stream())]
