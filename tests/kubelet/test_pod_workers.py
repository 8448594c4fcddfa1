"""Workers of pods: what cuts their work short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.common.clock import SystemClock
from services.common.watch import WatchHub
from services.kubelet.core.model import ContainerId, Pod, PodUid
from services.kubelet.core.pull_secrets import Credential
from services.kubelet.core.status import PodStatus
from services.kubelet.loops.actions import Actor, NodeFacts
from services.kubelet.loops.eventlog import EventLog
from services.kubelet.loops.hooks import Hooks
from services.kubelet.loops.stopping import Stopper
from services.kubelet.loops.sync import PodWorkers
from tests.builders import a_container, a_pod
from tests.fakes.files import FakeFiles
from tests.fakes.last_words import FakeLastWords
from tests.fakes.pod_source import ValueSource
from tests.fakes.runtime import FakeRuntime
from tests.fakes.volumes import what_pods_bring
from tests.waiting import until

pytestmark = pytest.mark.asyncio
UID = PodUid("uid-1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class SlowRuntime(FakeRuntime):
    """Stops a container when its grace is over, as nothing in it heeds the signal; pulls when it is told."""

    def __init__(self) -> None:
        super().__init__(present=["app:1"], pullable=["slow:1"])
        self.asked: list[int] = []
        self.pulled = asyncio.Event()
        self.pulling = asyncio.Event()

    async def stop_container(self, container: ContainerId, grace_seconds: int) -> None:
        """Stop a container."""
        self.asked.append(grace_seconds)
        await asyncio.sleep(grace_seconds)
        await super().stop_container(container, grace_seconds)

    async def pull_image(self, image: str, credential: Credential | None = None) -> None:
        """Pull an image."""
        self.pulling.set()
        await self.pulled.wait()
        await super().pull_image(image, credential)


@dataclass
class Node:
    """What a test drives and looks at. `files` outlive a run of the workers."""

    runtime: SlowRuntime = field(default_factory=SlowRuntime)
    source: ValueSource = field(default_factory=ValueSource)
    files: FakeFiles = field(default_factory=FakeFiles)
    statuses: WatchHub[PodStatus] = field(default_factory=lambda: WatchHub("run"))

    def put(self, pod: Pod) -> None:
        """Tell of a pod."""
        self.source.hub.upsert(pod.uid, pod)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for a condition, with a limit."""
        await until(holds, 5)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run workers for a block; a run that ends so is one that was killed."""
        clock, events = SystemClock(), EventLog(SystemClock(), "run")
        stopper = Stopper(self.runtime, _NoHooks(), events, clock)
        hooks = Hooks(_NoHooks(), events, clock, lambda uid: None)
        words = FakeLastWords()
        volumes, puller = what_pods_bring(self.runtime, events, None, None)
        actor = Actor(
            self.runtime,
            self.source,
            self.files,
            events,
            NodeFacts(Path("/state"), 1 << 30),
            stopper=stopper,
            hooks=hooks,
            words=words,
            volumes=volumes,
            puller=puller,
        )
        workers = PodWorkers(
            source=self.source,
            runtime=self.runtime,
            actor=actor,
            files=self.files,
            events=events,
            clock=clock,
            hub=self.statuses,
            host_ip="192.0.2.1",
            hooks=hooks,
            words=words,
            volumes=volumes,
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(workers.run()), group.create_task(workers.follow_source())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()


class _NoHooks:
    async def run(self, *_: object) -> str | None:
        return ""


def stopped(pod: Pod, grace_seconds: int) -> Pod:
    """Return a pod that is asked to stop."""
    return replace(pod, deletion_time=NOW, deletion_grace_seconds=grace_seconds)


async def test_a_grace_that_is_shortened_holds_at_once() -> None:
    """Whoever forces a deletion does not wait for the grace that was given before."""
    node = Node()
    async with node.working():
        node.put(a_pod())
        await node.until(lambda: (status := node.statuses.get(UID)) and status.ready)
        node.put(stopped(a_pod(), 3600))
        await node.until(lambda: node.runtime.asked == [3600])

        node.put(stopped(a_pod(), 0))
        await node.until(lambda: node.source.pod(UID) is None)

        assert node.runtime.asked == [3600, 0]


async def test_a_pod_that_is_deleted_does_not_wait_for_its_image() -> None:
    """A registry that hangs keeps no pod."""
    node = Node()
    async with node.working():
        pod = a_pod(a_container(image="slow:1"))
        node.put(pod)
        await node.runtime.pulling.wait()

        node.put(stopped(pod, 30))
        await node.until(lambda: node.source.pod(UID) is None)

        assert node.runtime.asked == []


async def test_a_pod_keeps_its_start_when_the_kubelet_is_killed_while_it_pulls() -> None:
    """Its deadline counts from when the API was told: nothing else was kept."""
    node = Node()
    pod = a_pod(a_container(image="slow:1"))
    async with node.working():
        node.put(pod)
        await node.runtime.pulling.wait()
        before = node.statuses.get(UID)
    assert before is not None
    node.statuses = WatchHub("run")
    node.put(replace(pod, start_time=before.start_time))
    async with node.working():
        await node.until(lambda: node.statuses.get(UID))
        after = node.statuses.get(UID)
    assert after is not None
    assert after.start_time == before.start_time
