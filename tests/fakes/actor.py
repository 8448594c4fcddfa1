"""An actor whose hooks nobody runs: for tests of what it makes."""

from __future__ import annotations

from collections.abc import Callable

from services.common.clock import SystemClock
from services.kubelet.adapters.hook_runner import NetworkHookRunner
from services.kubelet.loops.actions import Actor, NodeFacts
from services.kubelet.loops.hooks import Hooks
from services.kubelet.loops.stopping import Stopper
from services.kubelet.ports import EventSink, PodFiles, PodSource, Runtime
from tests.fakes.last_words import FakeLastWords
from tests.fakes.volumes import FakeObjects, FakeVolumeFiles, what_pods_bring


def an_actor(
    runtime: Runtime,
    source: PodSource,
    files: PodFiles,
    events: EventSink,
    facts: NodeFacts,
    restriction: Callable[[], str] = lambda: "",
    objects: FakeObjects | None = None,
    volumes: FakeVolumeFiles | None = None,
) -> Actor:
    """Make an actor."""
    clock = SystemClock()
    runner = NetworkHookRunner(runtime, events, clock)
    brought = what_pods_bring(runtime, events, objects, volumes)
    return Actor(
        runtime,
        source,
        files,
        events,
        facts,
        restriction,
        stopper=Stopper(runtime, runner, events, clock),
        hooks=Hooks(runner, events, clock, lambda uid: None),
        words=FakeLastWords(),
        volumes=brought[0],
        puller=brought[1],
    )
