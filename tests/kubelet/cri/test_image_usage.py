"""How much images take: counted seldom, and told also when the engine cannot count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.kubelet.cri.errors import EngineTimeoutError
from services.kubelet.cri.imageusage import ImageUsage, Usage
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio


class Source:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.counts = 0
        self.fault: Exception | None = None

    async def disk_usage(self) -> dict[str, Any]:
        """Count."""
        self.counts += 1
        await asyncio.sleep(0)
        if self.fault:
            raise self.fault
        return {"LayersSize": 100 * self.counts, "Containers": [{"SizeRw": 7}]}

    async def images(self) -> list[dict[str, Any]]:
        """List."""
        return [{"Size": 40}, {"Size": 2}]


async def test_usage_is_counted_once_in_a_while() -> None:
    """For all who ask meanwhile."""
    source, clock = Source(), FakeClock()
    usage = ImageUsage(source, clock)
    async with asyncio.TaskGroup() as group:
        usage.bind(group)
        together = await asyncio.gather(*(usage.look() for _ in range(5)))
        await clock.advance(29)
        soon = await usage.look()
        await clock.advance(2)
        later = await usage.look()

    assert [*together, soon] == [Usage(100, 7)] * 6
    assert later == Usage(200, 7)


async def test_an_engine_that_cannot_count_still_lists() -> None:
    """First by its images, afterwards by the last count."""
    source, clock = Source(), FakeClock()
    usage = ImageUsage(source, clock)
    source.fault = EngineTimeoutError("system.df", 60)
    first = await usage.look()
    source.fault = None
    counted = await usage.look()
    await clock.advance(31)
    source.fault = EngineTimeoutError("system.df", 60)

    assert first == Usage(42, 0)
    assert counted == Usage(200, 7)
    assert await usage.look() == counted
