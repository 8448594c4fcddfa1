"""What a reflector keeps, whatever the server and the wire do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from services.common.clock import SystemClock
from services.common.kubeapi import KubeApi
from services.common.kuberequest import Json, Resource, Selection
from services.common.reflector import Reflector
from services.common.replica import Change
from tests.fakes.clock import FakeClock
from tests.fakes.kube_server import KubeServer

pytestmark = pytest.mark.asyncio
MAPS = Resource("v1", "configmaps")


class World:
    """A server, a reflector of its ConfigMaps, and what it told."""

    def __init__(self, server: KubeServer, clock: FakeClock) -> None:
        self.server = server
        self.clock = clock
        self.told: list[tuple[str, str | None]] = []
        self.batches = 0
        self.api = KubeApi(server.access(), SystemClock(), agent="test/1", jitter=lambda: 0.0)
        self.reflector: Reflector[str] = Reflector(
            self.api, Selection(MAPS), read=read, tell=self._tell, clock=clock, jitter=lambda: 0.0
        )

    def _tell(self, changes: Sequence[Change[str]]) -> None:
        self.batches += 1
        self.told += [(change.key, change.after) for change in changes]

    def put(self, name: str, value: str) -> None:
        """Change an object at the server."""
        self.server.put("configmaps", {"metadata": {"name": name, "namespace": "ns"}, "data": {"v": value}})

    async def until(self, holds: Callable[[], bool], step_seconds: float = 0.05) -> None:
        """Wait for something, moving the clock a little at a time."""
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.002)
                await self.clock.advance(step_seconds)


def read(item: Json) -> str:
    """Read an object."""
    return str(item["data"]["v"])


@asynccontextmanager
async def a_world(*names: str) -> AsyncIterator[World]:
    """Run a reflector on a server with some objects, followed to its first watch."""
    server = KubeServer()
    await server.start()
    world = World(server, FakeClock())
    for name in names:
        world.put(name, "1")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.reflector.run())
        await world.until(lambda: server.stream_count == 1)
        yield world
        task.cancel()
    await world.api.close()
    await server.stop()


async def test_what_is_there_is_told_at_once_and_then_each_change() -> None:
    """A list is one batch, then events come one by one."""
    async with a_world("a", "b") as world:
        assert world.reflector.synced.is_set()
        assert (world.told, world.batches) == ([("ns/a", "1"), ("ns/b", "1")], 1)

        world.put("a", "2")
        world.server.remove("configmaps", "ns", "b")
        await world.until(lambda: len(world.told) == 4)

        assert world.told[2:] == [("ns/a", "2"), ("ns/b", None)]
        assert dict(world.reflector.values()) == {"ns/a": "2"}


async def test_a_list_in_parts_is_told_as_one() -> None:
    """A part of a list is not the whole."""
    server = KubeServer()
    server.chunk_limit = 2
    await server.start()
    world = World(server, FakeClock())
    for number in range(5):
        world.put(f"m{number}", "1")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.reflector.run())
        await world.until(world.reflector.synced.is_set)
        task.cancel()

    assert (len(world.told), world.batches, server.count("list")) == (5, 1, 3)
    await world.api.close()
    await server.stop()


async def test_streams_that_are_cut_again_and_again_lose_nothing() -> None:
    """After a cut the watch goes on, and what comes again is not told again."""
    async with a_world("a") as world:
        for number in range(2, 7):
            world.put("a", str(number))
            world.server.cut_streams()
            wanted = world.server.count("watch") + 1
            await world.until(lambda wanted=wanted: world.server.count("watch") == wanted)  # type: ignore[misc]
        await world.until(lambda: world.told[-1] == ("ns/a", "6"))

        assert world.told == [("ns/a", str(number)) for number in range(1, 7)]
        assert world.server.count("list") == 1


async def test_a_stream_that_ends_is_resumed_after_its_last_event() -> None:
    """The server ends watches every few minutes; that costs one request."""
    async with a_world("a") as world:
        world.put("a", "2")
        await world.until(lambda: len(world.told) == 2)
        world.server.end_streams()
        await world.until(lambda: world.server.count("watch") == 2)

        resumed = world.server.seen[-1].query
        assert resumed["resourceVersion"] == str(world.server.revision)
        assert 300 <= int(resumed["timeoutSeconds"]) <= 600


async def test_an_event_that_a_bookmark_overtook_is_not_lost() -> None:
    """A stream that reorders and is cut then is resumed from before the reordered part."""
    async with a_world("a") as world:
        world.server.silent = True
        world.put("a", "2")
        world.server.bookmark()
        await asyncio.sleep(0.05)
        world.server.cut_streams()
        world.server.silent = False
        await world.until(lambda: len(world.told) == 2)

        assert world.told[-1] == ("ns/a", "2")


async def test_a_compacted_history_means_a_new_list_of_which_the_difference_is_told() -> None:
    """410: nothing is told twice, deletions are found."""
    async with a_world("a", "b", "c") as world:
        world.server.silent = True
        world.put("a", "2")
        world.server.remove("configmaps", "ns", "b")
        world.server.silent = False
        world.server.compact()
        world.server.cut_streams()
        await world.until(lambda: world.server.count("list") == 2 and world.server.stream_count == 1)

        assert world.told[3:] == [("ns/b", None), ("ns/a", "2")]


async def test_a_server_that_refuses_changes_nothing_and_is_not_stormed() -> None:
    """An error is no empty list; attempts are spaced out further and further."""
    async with a_world("a") as world:
        world.server.refuse(500, times=1000)
        world.server.cut_streams()
        before = world.server.count()
        began = world.clock.monotonic()
        await world.until(lambda: world.clock.monotonic() - began > 120, 1.0)

        assert dict(world.reflector.values()) == {"ns/a": "1"}
        assert world.server.count() - before <= 10
        assert "are not followed since" in (world.reflector.fault() or "")
        world.server.faults.clear()
        world.put("a", "2")
        await world.until(lambda: world.told[-1] == ("ns/a", "2"))
        assert world.reflector.fault() is None


async def test_repeated_and_reordered_events_are_dropped() -> None:
    """What is not newer than what is known changes nothing."""
    async with a_world("a") as world:
        first = dict(world.server.all("configmaps")[0])
        world.put("a", "2")
        second = dict(world.server.all("configmaps")[0])
        world.put("a", "3")
        for kind, item in (("MODIFIED", second), ("ADDED", first), ("DELETED", first)):
            world.server.send("configmaps", kind, item)
        world.put("end", "1")
        await world.until(lambda: ("ns/end", "1") in world.told)

        assert world.told == [("ns/a", "1"), ("ns/a", "2"), ("ns/a", "3"), ("ns/end", "1")]


async def test_a_stream_that_fell_silent_is_left() -> None:
    """A dead connection that nobody closed costs 150 s after its last bookmark."""
    async with a_world("a") as world:
        world.server.bookmark()
        await asyncio.sleep(0.05)
        began = world.clock.monotonic()
        await world.until(lambda: world.server.count("watch") == 2, 1.0)

        assert 140 <= world.clock.monotonic() - began <= 170


async def test_an_event_that_is_no_object_starts_the_stream_anew() -> None:
    """A broken middle box does not end the kubelet."""
    async with a_world("a") as world:
        world.server.send("configmaps", "MODIFIED", {"kind": "Nonsense"})
        await world.until(lambda: world.server.count("watch") == 2)

        assert dict(world.reflector.values()) == {"ns/a": "1"}


async def test_a_server_that_answers_somebody_again_is_asked_at_once() -> None:
    """After a long time without it, nobody waits for the end of a long pause."""
    async with a_world("a") as world:
        await world.server.stop()
        await world.until(lambda: world.clock.monotonic() > 100, 1.0)
        world.put("a", "2")
        await world.server.start()
        await asyncio.sleep(0.05)
        before = world.clock.monotonic()

        await world.api.get(MAPS, "ns", "a")
        await world.until(lambda: world.told[-1] == ("ns/a", "2"), 0.02)

        assert world.clock.monotonic() - before < 5
