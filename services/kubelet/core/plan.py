"""Decide what to do for one pod now. Pure: no clock, no I/O.

The rules, in order:

- A pod that is being deleted stops its containers, then its sandbox, then goes.
- A pod whose main containers have all ended for good, one of whose init containers
  failed for good, or whose time is up stops what still runs, and gives its sandbox back.
  It keeps what has ended.
- Sidecars are signalled after the main containers have ended, the last one first.
- Containers need a ready sandbox; a lost one is replaced with the next attempt, in
  which every init container runs again.
- Init containers start one after the other (`begin`), then the main ones, each of
  them when the postStart hook of the one before it has ended.
- A container that ended starts again as the restart policy says, at once for the
  first time, then after a growing wait; a sidecar always. One whose liveness probe or
  postStart hook failed, or whose image is to be another, is stopped first. One ended
  instance of each container is kept for its log.
- Ephemeral containers start once, and nobody waits for them.
- One that somebody removed has ended, too: see `recall`. One that somebody paused is
  left alone; any other of which nobody knows whether it runs is stopped first.

A plan may be cut short after any action: the next observation leads to the rest.
Source: Kubernetes "Pod Lifecycle", "Sidecar Containers"; the kubelet's `computePodActions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from services.kubelet.core.action import (
    Action,
    CreateSandbox,
    Finalize,
    PullImage,
    RemoveContainer,
    RemoveSandbox,
    RunPostStart,
    StartContainer,
    StopContainer,
    StopSandbox,
    WaitUntil,
)
from services.kubelet.core.begin import awaited, failed_init, is_sidecar, started
from services.kubelet.core.memory import (
    Ailment,
    HookState,
    Memory,
    Over,
    failed,
    forgive,
    look_again,
    recall,
    remember,
    succeeded,
)
from services.kubelet.core.model import Container, ContainerId, Pod
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.core.plan_container import Scene, plan_ephemeral, plan_initial, plan_lasting
from services.kubelet.core.restarts import comes_back, restarts
from services.kubelet.core.spec_hash import changed

__all__ = [
    "Action",
    "Ailment",
    "CreateSandbox",
    "Finalize",
    "HookState",
    "Memory",
    "Over",
    "PullImage",
    "RemoveContainer",
    "RemoveSandbox",
    "RunPostStart",
    "StartContainer",
    "StopContainer",
    "StopSandbox",
    "WaitUntil",
    "failed",
    "finished",
    "forgive",
    "hastens",
    "intend",
    "look_again",
    "plan_pod",
    "recall",
    "remember",
    "restarts",
    "succeeded",
]

MIN_GRACE_SECONDS = 2
_LIVE = (RuntimeState.RUNNING, RuntimeState.UNKNOWN)


def finished(pod: Pod, observed: ObservedPod) -> bool:
    """Tell whether nothing of a pod starts again: its main containers have ended, or an init one failed."""
    if failed_init(pod, observed) is not None:
        return True
    latest = [(spec, observed.latest(spec.name)) for spec in pod.spec.containers]
    return all(
        seen is not None and seen.state is RuntimeState.EXITED and not comes_back(pod, spec, seen.exit_code)
        for spec, seen in latest
    )


def intend(pod: Pod, observed: ObservedPod, memory: Memory) -> Memory:
    """Note which running containers are to be replaced, before any of them is stopped."""
    latest = ((spec, observed.latest(spec.name)) for spec in pod.spec.lasting)
    fresh = {
        seen.id
        for spec, seen in latest
        if seen is not None and seen.state is RuntimeState.RUNNING and changed(spec, seen)
    }
    return replace(memory, changed=memory.changed | fresh) if fresh else memory


def plan_pod(pod: Pod, observed: ObservedPod, memory: Memory, now: float) -> tuple[Action, ...]:
    """Return what to do, in order; nothing when the pod is as it should be."""
    scene = Scene(pod, observed, memory, now)
    if pod.deletion_time is not None:
        return tuple(_plan_deletion(pod, observed))
    if memory.over is not None:
        return tuple(_plan_end(scene, memory.over.message))
    if finished(pod, observed) and not _replacing(scene):
        init = failed_init(pod, observed)
        return tuple(_plan_end(scene, f"init container {init.name} failed" if init else _ENDED))
    return tuple(_plan_running(scene))


_ENDED = "every container has ended"


def _replacing(scene: Scene) -> bool:
    """Tell whether a main container ended since its spec changed, and is to start again."""
    latest = (scene.observed.latest(spec.name) for spec in scene.pod.spec.containers)
    return any(seen is not None and seen.id in scene.memory.changed for seen in latest)


def _plan_end(scene: Scene, reason: str) -> Iterator[Action]:
    """Stop what still runs of a pod that is over, and give its sandbox back."""
    yield from _stops(scene.pod, scene.observed, scene.pod.spec.termination_grace_period_seconds, reason)
    if scene.box is not None:
        yield StopSandbox(scene.box.id, reason)


def hastens(pod: Pod, action: Action) -> bool:
    """Tell whether a pod's deletion ends an action that is under way: a pull, or a stop that takes longer."""
    if pod.deletion_time is None:
        return False
    shorter = isinstance(action, StopContainer) and _seconds(_asked(pod)) < action.grace_seconds
    return shorter or isinstance(action, PullImage)


def _asked(pod: Pod) -> int:
    """Return the grace that a pod is deleted with."""
    asked = pod.deletion_grace_seconds
    return pod.spec.termination_grace_period_seconds if asked is None else asked


def _seconds(grace: int) -> int:
    """Return a grace as it is given: 0 means now, any other gets time enough for the signal to arrive."""
    return 0 if grace == 0 else max(MIN_GRACE_SECONDS, grace)


def _stops(pod: Pod, observed: ObservedPod, grace: int, reason: str) -> Iterator[StopContainer]:
    """Stop every container: sidecars after the others, the last one first."""
    seconds = _seconds(grace)
    ranks = {spec.name: rank for rank, spec in enumerate(reversed(pod.spec.sidecars), start=1)}
    for container in observed.containers:
        if container.state in _LIVE:
            rank = ranks.get(container.name, 0)
            yield StopContainer(container.id, container.name, seconds, reason, rank=rank)


def _plan_deletion(pod: Pod, observed: ObservedPod) -> Iterator[Action]:
    stops = list(_stops(pod, observed, _asked(pod), "the pod was deleted"))
    yield from stops
    for sandbox in observed.sandboxes:
        if sandbox.ready:
            yield StopSandbox(sandbox.id, "the pod was deleted")
    if stops:
        # How its containers ended is seen and told before what says so is removed.
        return
    for sandbox in observed.sandboxes:
        yield RemoveSandbox(sandbox.id, "the pod was deleted")
    for container in observed.homeless():
        yield RemoveContainer(container.id, "the pod was deleted")
    yield Finalize("nothing of the pod is left")


def _plan_running(scene: Scene) -> Iterator[Action]:
    steps = _plan_mains(scene)
    # No new sandbox is made while the main containers wait for their next try.
    if scene.box is not None or _starts(steps):
        begun = started(scene.pod, scene.observed, scene.memory)
        first = awaited(scene.pod.spec, scene.observed, begun)
        steps = [*_plan_ephemeral(scene), *_plan_init(scene, first), *(steps if first is None else ())]
    if scene.box is None and _starts(steps):
        yield from _plan_sandbox(scene.observed)
    yield from steps
    yield from _plan_tidying(scene.observed)


def _starts(steps: Iterable[Action]) -> bool:
    return any(isinstance(action, StartContainer) for action in steps)


def _plan_ephemeral(scene: Scene) -> list[Action]:
    specs = scene.pod.spec.ephemeral_containers
    return [action for spec in specs for action in plan_ephemeral(scene, spec)]


def _plan_init(scene: Scene, first: Container | None) -> list[Action]:
    """Keep the sidecars up that are there, and go on with the init container that is awaited."""
    steps: list[Action] = []
    for spec in scene.pod.spec.init_containers:
        if is_sidecar(scene.pod.spec, spec):
            steps += plan_lasting(scene, spec)
        elif spec is first:
            steps += plan_initial(scene, spec)
        if spec is first:
            break
    return steps


def _plan_mains(scene: Scene) -> list[Action]:
    """Plan the main containers in order; none starts while the postStart hook of one before it runs."""
    steps: list[Action] = []
    held = False
    for spec in scene.pod.spec.containers:
        wanted = plan_lasting(scene, spec)
        if not (held and _starts(wanted)):
            steps += wanted
            held = held or _hooks(scene, spec, wanted)
    return steps


def _hooks(scene: Scene, spec: Container, wanted: list[Action]) -> bool:
    """Tell whether a container's postStart hook runs, or is about to."""
    if spec.lifecycle.post_start is None:
        return False
    seen = scene.observed.latest(spec.name)
    runs = seen is not None and seen.state is RuntimeState.RUNNING and scene.box is not None
    over = seen is not None and scene.memory.hooks.get(seen.id) in (HookState.DONE, HookState.FAILED)
    return _starts(wanted) or (runs and not over)


def _plan_sandbox(observed: ObservedPod) -> Iterator[Action]:
    old = observed.sandbox()
    for container in observed.containers:
        if container.state in _LIVE:
            yield StopContainer(container.id, container.name, 0, "its sandbox is gone")
    if old is None:
        yield CreateSandbox(0, "the pod has no sandbox")
        return
    yield StopSandbox(old.id, "it is not ready")
    yield CreateSandbox(old.attempt + 1, "the sandbox is not ready")


def _plan_tidying(observed: ObservedPod) -> Iterator[Action]:
    """Keep one ended instance of each container; remove sandboxes that hold nothing that is kept."""
    kept: set[ContainerId] = set()
    for name in dict.fromkeys(c.name for c in observed.containers):
        instances = [c for c in observed.containers if c.name == name]
        kept |= {c.id for c in instances[:2]}
    current = observed.sandbox()
    for container in observed.containers:
        if container.id not in kept and container.state not in _LIVE and not container.removed:
            yield RemoveContainer(container.id, "a newer ended instance is kept")
    for container in observed.homeless():
        newest = observed.latest(container.name)
        if container.id in kept and container.state not in _LIVE and newest is not container:
            yield RemoveContainer(container.id, "its sandbox is gone")
    for sandbox in observed.sandboxes[1:]:
        holds = any(c.sandbox_id == sandbox.id and c.id in kept for c in observed.containers)
        if not holds and current is not None:
            yield RemoveSandbox(sandbox.id, "a newer sandbox took its place")
