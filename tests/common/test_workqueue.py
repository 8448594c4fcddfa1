"""What a handler of the work queue may rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.common.clock import SystemClock
from services.common.workqueue import WorkQueue

pytestmark = pytest.mark.asyncio


async def handled(queue: WorkQueue, handler: Callable[[str], Awaitable[None]], done: asyncio.Event) -> None:
    """Run the queue until `done`."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        runner = group.create_task(queue.run(handler, workers=4))
        await done.wait()
        runner.cancel()


async def test_a_key_that_waits_is_handled_once() -> None:
    """Adding again what waits changes nothing."""
    queue, seen, done = WorkQueue(SystemClock()), [], asyncio.Event()
    for key in ("a", "a", "b", "a"):
        queue.add(key)

    async def handler(key: str) -> None:
        seen.append(key)
        if len(seen) == 2:
            done.set()

    await handled(queue, handler, done)

    assert sorted(seen) == ["a", "b"]


async def test_one_key_is_never_handled_twice_at_a_time() -> None:
    """A key added while it is handled runs once more, afterwards."""
    queue, done = WorkQueue(SystemClock()), asyncio.Event()
    running, most, runs = 0, 0, 0

    async def handler(key: str) -> None:
        nonlocal running, most, runs
        running, runs = running + 1, runs + 1
        most = max(most, running)
        if runs == 1:
            queue.add(key)
            queue.add(key)
        await asyncio.sleep(0)
        running -= 1
        if runs == 2:
            done.set()

    queue.add("a")
    await handled(queue, handler, done)

    assert (most, runs) == (1, 2)


async def test_a_handler_that_raises_runs_again() -> None:
    """A fault costs a delay, never the key."""
    queue, done, attempts = WorkQueue(SystemClock()), asyncio.Event(), 0

    async def handler(key: str) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError("not yet")
        done.set()

    queue.add("a")
    await handled(queue, handler, done)

    assert attempts == 3


async def test_an_earlier_time_replaces_a_later_one() -> None:
    """`add` does not wait for a timer that `add_after` set."""
    queue, done, seen = WorkQueue(SystemClock()), asyncio.Event(), []

    async def handler(key: str) -> None:
        seen.append(key)
        done.set()

    queue.add_after("a", 3600)
    queue.add_after("a", 0.01)
    queue.add_after("a", 7200)
    await handled(queue, handler, done)

    assert seen == ["a"]


async def test_the_next_time_of_a_key_can_be_asked_for() -> None:
    """Now while it waits or runs, later while a timer is set, and never for a key without work."""
    queue, told = WorkQueue(SystemClock()), list[float | None]()
    done = asyncio.Event()

    async def handle(key: str) -> None:
        told.append(queue.next_seconds(key))
        done.set()

    queue.add_after("later", 60)
    queue.add("now")
    told.append(queue.next_seconds("now"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(queue.run(handle, workers=1))
        await done.wait()
        later, never = queue.next_seconds("later"), queue.next_seconds("never")
        task.cancel()

    assert told == [0.0, 0.0]
    assert later is not None
    assert 0 < later <= 60
    assert never is None


async def test_a_key_that_takes_long_keeps_no_other_waiting() -> None:
    """As long as fewer keys than workers take long."""
    queue, done, release = WorkQueue(SystemClock()), asyncio.Event(), asyncio.Event()
    most, running = 0, 0

    async def handler(key: str) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        if key.startswith("slow"):
            await release.wait()
        elif key == "last":
            done.set()
        running -= 1

    for key in ("slow1", "slow2", "slow3", "a", "b", "c", "last"):
        queue.add(key)
    await handled(queue, handler, done)

    assert most == 4
