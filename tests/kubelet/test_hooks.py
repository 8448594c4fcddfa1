"""postStart hooks run beside the workers, until they have succeeded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from services.kubelet.core.memory import HookState
from services.kubelet.core.model import ContainerId, ExecAction, HookAction, Pod, PodUid
from services.kubelet.loops.hooks import Hooks
from services.kubelet.ports import ProbeTarget
from tests.builders import a_container, a_pod
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio
UID, ID = PodUid("uid-1"), ContainerId("app-0")
HOOK = ExecAction(("x",))
TARGET = ProbeTarget(a_pod(), a_container(), ID, "127.0.0.1")


@dataclass
class World:
    """Hooks whose runner answers as a test says; events and moves are kept."""

    clock: FakeClock = field(default_factory=FakeClock)
    answers: list[str | None] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    moved: list[PodUid] = field(default_factory=list)
    ran: int = 0
    cancelled: int = 0

    async def run(self, action: HookAction, target: ProbeTarget, seconds: int) -> str | None:
        """Run one: an empty list of answers is a hook that hangs."""
        self.ran += 1
        if self.answers:
            return self.answers.pop(0)
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        return ""

    def emit(
        self, pod: Pod, reason: str, message: str, *, container: str = "", warning: bool = False
    ) -> None:
        """Keep an event."""
        self.told.append((reason, message))


@asynccontextmanager
async def hooks(world: World) -> AsyncIterator[Hooks]:
    """Run hooks for a block."""
    made = Hooks(world, world, world.clock, world.moved.append)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(made.run())
        await world.clock.settle()
        yield made
        running.cancel()


async def test_a_hook_runs_once_however_often_it_is_begun() -> None:
    """And says when it is done."""
    world = World(answers=[""])
    async with hooks(world) as made:
        made.begin(HOOK, TARGET)
        made.begin(HOOK, TARGET)
        before = made.states(UID)
        await world.clock.settle()
        made.begin(HOOK, TARGET)
        await world.clock.settle()

        assert (before, made.states(UID)) == ({ID: HookState.RUNNING}, {ID: HookState.DONE})
        assert (world.ran, world.moved, world.told) == (1, [UID], [])


async def test_a_hook_that_fails_says_so() -> None:
    """With an event; what is done then is decided elsewhere."""
    world = World(answers=["exit code 1"])
    async with hooks(world) as made:
        made.begin(HOOK, TARGET)
        await world.clock.settle()

        assert made.states(UID) == {ID: HookState.FAILED}
        assert world.told == [("FailedPostStartHook", "postStart hook failed: exit code 1")]


async def test_a_hook_that_no_runtime_could_run_is_run_again() -> None:
    """It is no fault of the container's."""
    world = World(answers=[None, None, ""])
    async with hooks(world) as made:
        made.begin(HOOK, TARGET)
        await world.clock.advance(0.9)
        early = world.ran
        await world.clock.advance(1.2)

        assert (early, world.ran) == (1, 3)
        assert made.states(UID) == {ID: HookState.DONE}


async def test_a_hook_ends_with_its_container() -> None:
    """One that hangs keeps nobody up."""
    world = World()
    async with hooks(world) as made:
        made.begin(HOOK, TARGET)
        await world.clock.settle()
        made.keep(UID, {ID})
        kept = made.states(UID)
        made.keep(UID, frozenset())
        await world.clock.settle()

        assert kept == {ID: HookState.RUNNING}
        assert made.states(UID) == {}
        assert (world.cancelled, world.told) == (1, [])


async def test_what_a_run_before_has_done_is_not_done_again() -> None:
    """Until the container is another one."""
    world = World(answers=["", ""])
    async with hooks(world) as made:
        made.adopt(UID, {ID: HookState.DONE})
        made.begin(HOOK, TARGET)
        await world.clock.settle()
        ran = world.ran
        made.forget(UID)
        made.begin(HOOK, TARGET)
        await world.clock.settle()

        assert (ran, world.ran) == (0, 1)
