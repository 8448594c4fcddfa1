"""Containers stop in their order, each within its grace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from services.kubelet.core.model import ContainerId, HookAction, Lifecycle, Pod, SleepAction
from services.kubelet.core.observed import RuntimeState
from services.kubelet.core.plan import StopContainer
from services.kubelet.loops.stopping import Stopper
from services.kubelet.ports import ProbeTarget
from tests.builders import a_container, a_pod, an_instance, observed
from tests.fakes.clock import FakeClock
from tests.fakes.runtime import FakeRuntime

pytestmark = pytest.mark.asyncio
SEEN = observed(an_instance(RuntimeState.RUNNING))


@dataclass
class World(FakeRuntime):
    """A runtime in which a container takes its time to end; hooks sleep for as long as they say."""

    clock: FakeClock = field(default_factory=FakeClock)
    takes: dict[str, float] = field(default_factory=dict)
    log: list[tuple[float, str]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)

    def _say(self, words: str) -> None:
        self.log.append((self.clock.monotonic(), words))

    async def stop_container(self, container: ContainerId, grace_seconds: int) -> None:
        """Take time to end, as much as the grace at most."""
        self._say(f"stop {container} {grace_seconds}")
        await self.clock.sleep(min(grace_seconds, self.takes.get(container, 0)))
        self._say(f"ended {container}")

    async def run(self, action: HookAction, target: ProbeTarget, seconds: int) -> str | None:
        """Run a hook, for as long as it may."""
        assert isinstance(action, SleepAction)
        self._say(f"hook {target.container_id}")
        await self.clock.sleep(min(action.seconds, seconds))
        return "" if action.seconds <= seconds else "too slow"

    def emit(
        self, pod: Pod, reason: str, message: str, *, container: str = "", warning: bool = False
    ) -> None:
        """Keep an event."""
        self.told.append((reason, message))


async def stopped(
    world: World, stops: Sequence[StopContainer], sleeps: dict[str, int] | None = None
) -> list[tuple[float, str]]:
    """Stop containers, whose preStop hooks sleep for so long; returns what happened when."""
    hooks = sleeps or {}
    pod = a_pod(
        *(a_container(name=n, lifecycle=Lifecycle(pre_stop=SleepAction(s))) for n, s in hooks.items())
    )
    task = asyncio.create_task(  # noqa: TID251  # awaited below
        Stopper(world, world, world, world.clock).stop(pod, SEEN, stops)
    )
    await world.clock.advance(200)
    await task
    return world.log


def a_stop(name: str, grace: int, rank: int = 0) -> StopContainer:
    """Make the stop of a container whose id is its name."""
    return StopContainer(ContainerId(name), name, grace, "the pod was deleted", rank=rank)


async def test_a_hook_takes_its_time_off_the_grace() -> None:
    """What is left is the container's."""
    log = await stopped(World(), [a_stop("app", 30)], {"app": 10})

    assert log == [(0, "hook app"), (10, "stop app 20"), (10, "ended app")]


async def test_two_seconds_are_left_after_a_hook_that_takes_all() -> None:
    """A signal needs time to arrive; the hook's fault is told."""
    world = World()

    log = await stopped(world, [a_stop("app", 5)], {"app": 60})

    assert log == [(0, "hook app"), (5, "stop app 2"), (5, "ended app")]
    assert ("FailedPreStopHook", "preStop hook failed: too slow") in world.told


async def test_a_grace_of_zero_runs_no_hook_and_waits_for_nobody() -> None:
    """It means now."""
    stops = [a_stop("side", 0, 1), a_stop("app", 0)]

    log = await stopped(World(takes={"app": 5}), stops, {"app": 10})

    assert [words for when, words in log if when == 0][:2] == ["stop side 0", "stop app 0"]


async def test_sidecars_wait_for_those_before_them_within_the_grace() -> None:
    """Their hooks run at once; the time that they wait is taken off their grace."""
    world = World(takes={"app": 4, "last": 3})
    stops = [a_stop("first", 30, 2), a_stop("last", 30, 1), a_stop("app", 30)]

    log = await stopped(world, stops, {"first": 1})

    assert log == [
        (0, "hook first"),
        (0, "stop app 30"),
        (4, "ended app"),
        (4, "stop last 26"),
        (7, "ended last"),
        (7, "stop first 23"),
        (7, "ended first"),
    ]


async def test_a_sidecar_whose_turn_does_not_come_in_time_is_stopped_all_the_same() -> None:
    """With two seconds; what it waits for ends later."""
    world = World(takes={"app": 20})
    stops = [a_stop("side", 1, 1), a_stop("app", 20)]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(Stopper(world, world, world, world.clock).stop(a_pod(), SEEN, stops))
        while (0, "stop side 2") not in world.log:  # noqa: ASYNC110  # real time passes
            await asyncio.sleep(0.01)
        early = [words for _, words in world.log]
        await world.clock.advance(20)

    assert early[:2] == ["stop app 20", "stop side 2"]
    assert "ended app" not in early


async def test_an_event_may_say_it_in_other_words() -> None:
    """As the original does of a changed image."""
    world = World()
    stop = StopContainer(
        ContainerId("app"), "app", 5, "its definition changed", event="Container app changed"
    )

    await stopped(world, [stop])

    assert world.told == [("Killing", "Container app changed")]
