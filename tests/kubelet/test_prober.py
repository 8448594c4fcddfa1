"""Startup probes come first, and what fails too often ends the container, with its name."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.kubelet.core.memory import Ailment
from services.kubelet.core.model import ContainerId, ExecAction, Pod, Probe
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.loops.prober import Prober
from services.kubelet.ports import ProbeOutcome, ProbeTarget
from tests.builders import a_container, a_pod, an_instance, observed
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio
SEEN = observed(an_instance(RuntimeState.RUNNING))


def a_probe(name: str, **values: Any) -> Probe:
    """Make a probe that the scripted runner knows by its command."""
    return Probe(ExecAction((name,)), **values)


PROBES = {
    "startup_probe": a_probe("startup", period_seconds=5, failure_threshold=3),
    "readiness_probe": a_probe("readiness"),
    "liveness_probe": a_probe("liveness", failure_threshold=1),
}


@dataclass
class Scripted:
    """Implements `ProbeRunner`: each probe has the outcome that the test says now."""

    outcomes: dict[str, bool]
    ran: Counter[str] = field(default_factory=Counter)

    async def run(self, probe: Probe, target: ProbeTarget) -> ProbeOutcome:
        """Run one."""
        assert isinstance(probe.action, ExecAction)
        name = probe.action.command[0]
        self.ran[name] += 1
        return ProbeOutcome(self.outcomes[name], "" if self.outcomes[name] else f"{name} says no")


class Events:
    """Implements `EventSink`."""

    def emit(self, *_: Any, **__: Any) -> None:
        """Take one."""


@dataclass
class World:
    """A prober that is told of the pod each time a verdict moves, as the worker does."""

    prober: Prober
    runner: Scripted
    clock: FakeClock
    pod: Pod
    seen: ObservedPod = SEEN

    @property
    def ready(self) -> bool:
        """What the status says of the container."""
        return self.prober.readiness(self.pod, self.seen)["app-0"]

    def look(self) -> None:
        """Look as the worker does after a change."""
        self.prober.update(self.pod, self.seen)


@asynccontextmanager
async def world(**wanted: Any) -> AsyncIterator[World]:
    """Run a prober for one pod."""
    clock, runner = FakeClock(), Scripted({"startup": False, "readiness": True, "liveness": True})
    made: list[World] = []
    prober = Prober(runner, Events(), clock, lambda _: made[0].look())
    made.append(World(prober, runner, clock, a_pod(a_container(**(wanted or PROBES)))))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(prober.run())
        await clock.settle()
        made[0].look()
        await clock.settle()
        yield made[0]
        running.cancel()


async def test_no_other_probe_runs_before_the_startup_probe_has_succeeded() -> None:
    """Then the others run at once, and the startup probe no more."""
    async with world() as made:
        await made.clock.advance(5)
        before, judged = dict(made.runner.ran), made.ready
        made.runner.outcomes["startup"] = True
        await made.clock.advance(5)
        await made.clock.advance(30)

        assert (before, judged) == ({"startup": 2}, False)
        assert made.runner.ran["startup"] == 3
        assert made.runner.ran["readiness"] > 2
        assert made.runner.ran["liveness"] > 2
        assert made.ready
        assert made.prober.unhealthy(made.seen) == {}


async def test_a_container_that_does_not_start_in_time_is_ended() -> None:
    """After the threshold's number of failures in a row, and not probed again."""
    async with world() as made:
        await made.clock.advance(4)
        early = made.prober.unhealthy(made.seen)
        await made.clock.advance(60)

        assert early == {}
        assert made.prober.unhealthy(made.seen) == {"app-0": Ailment("its startup probe failed")}
        assert made.runner.ran == {"startup": 3}


async def test_a_container_without_a_readiness_probe_is_ready_once_it_has_started() -> None:
    """And not before."""
    async with world(startup_probe=PROBES["startup_probe"]) as made:
        before = made.ready
        made.runner.outcomes["startup"] = True
        await made.clock.advance(5)

        assert (before, made.ready) == (False, True)


async def test_a_new_instance_starts_anew() -> None:
    """What its predecessor had reached is forgotten with it."""
    async with world() as made:
        made.runner.outcomes["startup"] = True
        await made.clock.advance(5)
        made.seen = observed(an_instance(RuntimeState.RUNNING, 1))
        made.runner.outcomes["startup"] = False
        made.look()
        await made.clock.settle()

        assert made.prober.readiness(made.pod, made.seen) == {"app-1": False}
        assert made.prober._started == {}


async def test_a_failing_liveness_probe_names_itself() -> None:
    """With the reason that the container is stopped for."""
    async with world(liveness_probe=PROBES["liveness_probe"]) as made:
        made.runner.outcomes["liveness"] = False
        await made.clock.advance(10)

        assert made.prober.unhealthy(made.seen) == {"app-0": Ailment("its liveness probe failed")}


async def test_a_pod_that_ends_is_not_killed_for_a_late_start() -> None:
    """Its startup is asked for no more."""
    async with world() as made:
        made.pod = a_pod(a_container(**PROBES), deletion_time=made.clock.now())
        made.look()
        await made.clock.advance(60)

        assert made.prober.unhealthy(made.seen) == {}
        assert made.runner.ran["startup"] == 1


async def test_what_had_started_before_a_restart_is_not_asked_to_start_again() -> None:
    """Its startup probe may fail by now, which must end nobody."""
    async with world() as made:
        made.prober.forget(made.pod.uid)
        made.runner.ran.clear()
        made.prober.adopt(made.pod.uid, {ContainerId("app-0")})
        made.look()
        await made.clock.advance(60)

        assert made.runner.ran["startup"] == 0
        assert made.ready
        assert made.prober.begun(made.pod.uid) == {"app-0"}
