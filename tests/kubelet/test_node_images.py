"""Which images a node tells its cluster, and how often the runtime is asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.kubelet.core.node_images import Image, largest
from services.kubelet.loops.eventlog import EventLog
from services.kubelet.loops.node_images import NodeImages
from services.kubelet.loops.pulling import Puller
from tests.builders import a_pod
from tests.fakes.clock import FakeClock
from tests.fakes.runtime import FakeRuntime
from tests.fakes.volumes import FakeObjects

MINUTES = 30


@asynccontextmanager
async def looking(runtime: FakeRuntime) -> AsyncIterator[tuple[NodeImages, FakeClock]]:
    """Run the loop for a block; the runtime has been asked once."""
    clock = FakeClock()
    images = NodeImages(runtime, clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(images.run())
        try:
            images.look()
            await clock.settle()
            yield images, clock
        finally:
            task.cancel()


def test_the_largest_images_are_told_in_an_order_that_stays() -> None:
    """Fifty of them, equals by their ids, whatever order the runtime has."""
    images = [
        Image(f"i{number:02d}", 1000 if number % 2 else number, tags=(f"r:{number}",)) for number in range(80)
    ]

    told = largest(images)

    assert len(told) == 50
    assert [image.id for image in told[:2]] == ["i79", "i77"]
    assert [image.size_bytes for image in told] == sorted((i.size_bytes for i in told), reverse=True)
    assert told == largest(reversed(images))


def test_an_image_without_a_name_takes_no_place() -> None:
    """Builds leave many, and no pod can ask for one."""
    small = Image("small", 1, tags=("r:1",))

    assert largest([*(Image(f"i{number}", 1000) for number in range(60)), small]) == (small,)


def test_an_image_has_five_names_at_most_digests_first() -> None:
    """A runtime may give them in any order."""
    image = Image("i", 1, digests=("r@sha256:b", "r@sha256:a"), tags=("r:4", "r:3", "r:2", "r:1"))

    assert image.names == ("r@sha256:a", "r@sha256:b", "r:1", "r:2", "r:3")
    assert Image("i", 1).names == ()


@pytest.mark.asyncio
async def test_the_runtime_is_asked_once_a_minute() -> None:
    """What others pulled or removed is known then."""
    runtime = FakeRuntime(present=["app:1"])
    async with looking(runtime) as (images, clock):
        runtime.present.add("app:2")
        await clock.advance(60.0 * MINUTES)

        assert images.images is not None
        assert [image.id for image in images.images] == ["app:2", "app:1"]
        assert runtime.calls.count("images") == 1 + MINUTES


@pytest.mark.asyncio
async def test_a_pull_is_seen_soon_and_many_cost_no_more() -> None:
    """A hundred pulls within ten seconds are one question."""
    runtime = FakeRuntime(pullable=["app:1"])
    async with looking(runtime) as (images, clock):
        puller = Puller(runtime, FakeObjects(), EventLog(clock, "run"), lambda pod: ())
        puller.on_pulled = images.look
        for _ in range(100):
            await puller.pull(a_pod(), "app:1")
        await clock.advance(10.0)

        assert [image.id for image in images.images or ()] == ["app:1"]
        assert runtime.calls.count("images") == 2


@pytest.mark.asyncio
async def test_an_error_leaves_what_was_known() -> None:
    """A runtime that is away has lost no image."""
    runtime = FakeRuntime(present=["app:1"])
    async with looking(runtime) as (images, clock):
        runtime.down = True
        await clock.advance(300.0)

        assert [image.id for image in images.images or ()] == ["app:1"]
        assert runtime.calls.count("images") > 2
