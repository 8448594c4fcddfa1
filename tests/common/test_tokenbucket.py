"""How often something may happen."""

from __future__ import annotations

import asyncio

import pytest

from services.common.tokenbucket import TokenBucket
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio


async def test_a_burst_passes_and_the_rest_waits_in_order() -> None:
    """So many at once, then so many a second."""
    clock = FakeClock()
    bucket = TokenBucket(clock, per_second=2.0, burst=2)
    passed: list[int] = []

    async def take(number: int) -> None:
        await bucket.take()
        passed.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(take(number))
        await clock.settle()
        assert passed == [0, 1]
        await clock.advance(0.5)
        assert passed == [0, 1, 2]
        await clock.advance(0.5)

    assert passed == [0, 1, 2, 3]


async def test_tokens_come_back_up_to_the_burst() -> None:
    """A long quiet time saves up no more than one burst."""
    clock = FakeClock()
    bucket = TokenBucket(clock, per_second=1.0, burst=3)
    assert [bucket.try_take() for _ in range(4)] == [True, True, True, False]

    await clock.advance(3600)

    assert [bucket.try_take() for _ in range(4)] == [True, True, True, False]
