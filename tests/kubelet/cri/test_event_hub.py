"""The hub of the engine's events: breaks, readers, and readers that do not keep up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from services.kubelet.cri import naming
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import CriError, EngineUnreachableError
from services.kubelet.cri.eventhub import QUEUE_LENGTH, EventHub
from services.kubelet.cri.events import Happening, Stage
from services.kubelet.cri.naming import CONTAINER, Record
from services.kubelet.cri.register import Register
from services.kubelet.cri.sandboxes import Holdings, Owned
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio
LIMIT_SECONDS = 20
RECORD = Record(CONTAINER, "app", sandbox_id="box")


class Engine:
    """Its events and its list, as the hub sees them."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.since: list[str] = []
        self.states: dict[str, str] = {}
        self.clock = FakeClock()

    async def events(self, _: Mapping[str, list[str]], since: str) -> AsyncIterator[dict[str, Any]]:
        """Yield events; None breaks the stream."""
        self.since.append(since)
        while (event := await self.sent.get()) is not None:
            yield event
            self.sent.task_done()
        raise EngineUnreachableError("fake", "it broke")

    async def claimants(self) -> tuple[list[Owned], list[Any]]:
        """List what there is."""
        items = [{"Id": i, "State": state, "Labels": LABELS} for i, state in self.states.items()]
        return [(item, RECORD) for item in items], []

    def tell(self, container_id: str, action: str, time: int) -> None:
        """Send an event."""
        actor = {"Attributes": LABELS}
        self.sent.put_nowait({"id": container_id, "Action": action, "Actor": actor, "timeNano": time})


LABELS = naming.labels(RECORD, "node", Record(naming.SANDBOX, "web", "default", "uid"))


@asynccontextmanager
async def hub(engine: Engine, folder: Path, *ids: str) -> AsyncIterator[EventHub]:
    """Run a hub for a block; these ids are ours."""
    register = Register(folder, "node")
    register.open()
    for container_id in ids:
        register.add(container_id)
    made = EventHub(cast(EngineStreams, engine), cast(Holdings, engine), register, "node", engine.clock)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(made.run())
        async with asyncio.timeout(LIMIT_SECONDS):
            yield made
        running.cancel()


async def _opened(engine: Engine, count: int = 1) -> None:
    while len(engine.since) < count:  # noqa: ASYNC110  # a fake has no condition
        await asyncio.sleep(0)


async def test_a_break_is_made_up_for_and_resumed(tmp_path: Path) -> None:
    """The stream begins again at the last event; what the engine forgot comes from its list."""
    engine = Engine()
    async with hub(engine, tmp_path, "a") as made:
        await _opened(engine)
        reading = made.read()
        first = asyncio.ensure_future(anext(reading))  # noqa: TID251  # ends in this test
        await asyncio.sleep(0)
        engine.tell("a", "create", 2_000_000_000_000_000_005)
        found = [*(await first)]
        engine.states["a"] = "exited"
        engine.sent.put_nowait(None)
        await engine.clock.settle()
        await engine.clock.advance(1.0)
        while len(found) < 3:
            found += await anext(reading)
        await _opened(engine, 2)
        await reading.aclose()  # type: ignore[attr-defined]  # an async generator

    assert [happening.stage for happening in found] == [Stage.CREATED, Stage.STARTED, Stage.STOPPED]
    assert engine.since[1] == "2000000000.000000005"


async def test_what_is_not_ours_is_not_told(tmp_path: Path) -> None:
    """A label is no proof: an image may bring any."""
    engine = Engine()
    async with hub(engine, tmp_path, "a") as made:
        await _opened(engine)
        reading = made.read()
        first = asyncio.ensure_future(anext(reading))  # noqa: TID251  # ends in this test
        await asyncio.sleep(0)
        engine.tell("stranger", "create", 2_000_000_000_000_000_001)
        engine.tell("a", "create", 2_000_000_000_000_000_002)
        found = await first
        await reading.aclose()  # type: ignore[attr-defined]  # an async generator

    assert [happening.subject.container_id for happening in found] == ["a"]


async def test_a_reader_that_does_not_keep_up_is_cut_off(tmp_path: Path) -> None:
    """It is told so; another one that reads has them all."""
    engine = Engine()
    ids = [f"c{number}" for number in range(QUEUE_LENGTH + 9)]
    seen: list[Happening] = []
    async with hub(engine, tmp_path, *ids) as made:
        await _opened(engine)
        slow = made.read()
        started = asyncio.ensure_future(anext(slow))  # noqa: TID251  # ends in this test
        await asyncio.sleep(0)
        engine.tell(ids[0], "create", 2_000_000_000_000_000_000)
        await started

        async def read_all() -> None:
            async for some in made.read():
                seen.extend(some)
                if len(seen) >= len(ids) - 1:
                    return

        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read_all())
            await asyncio.sleep(0)
            for number, container_id in enumerate(ids[1:], 1):
                engine.tell(container_id, "create", 2_000_000_000_000_000_000 + number)
                if number % 100 == 0:
                    await engine.sent.join()
                    await asyncio.sleep(0)  # The other reader's turn.
            await reader
        with pytest.raises(CriError) as caught:
            await anext(slow)

    assert caught.value.reason == "READER_TOO_SLOW"
    assert [happening.subject.container_id for happening in seen] == ids[1:]
