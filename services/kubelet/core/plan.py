"""Decide what to do for one pod now. Pure: no clock, no I/O.

The rules, in order:

- A pod that is being deleted stops its containers, then its sandbox, then goes.
- A pod whose containers have all ended for good keeps them, and gives its sandbox back.
- Containers need a ready sandbox; a lost one is replaced with the next attempt.
- A container that ended starts again as the restart policy says, at once for the
  first time, then after a growing wait. One whose liveness probe failed is stopped
  first. One ended instance of each container is kept for its log.
- One that somebody removed has ended, too: see `recall`. One that somebody paused is
  left alone; any other of which nobody knows whether it runs is stopped first.

A plan may be cut short after any action: the next observation leads to the rest.
Source: Kubernetes "Pod Lifecycle"; the kubelet's `computePodActions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from services.kubelet.core.backoff import Backoff, after_failure
from services.kubelet.core.model import Container, ContainerId, Pod, PullPolicy, RestartPolicy, SandboxId
from services.kubelet.core.observed import PAUSED, ObservedContainer, ObservedPod, RuntimeState

MIN_GRACE_SECONDS = 2
_KILLED = 137
_LIVE = (RuntimeState.RUNNING, RuntimeState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    """Make a sandbox."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class PullImage:
    """Make sure that a container's image is there, as its policy says."""

    container: str
    image: str
    policy: PullPolicy
    reason: str


@dataclass(frozen=True, slots=True)
class StartContainer:
    """Create and start a container in the newest sandbox."""

    container: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class StopContainer:
    """Stop a container: its signal, then KILL after `grace_seconds`."""

    id: ContainerId
    container: str
    grace_seconds: int
    reason: str


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Remove an ended container."""

    id: ContainerId
    reason: str


@dataclass(frozen=True, slots=True)
class StopSandbox:
    """End a sandbox and give its address back."""

    id: SandboxId
    reason: str


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    """Remove a sandbox with what is left in it."""

    id: SandboxId
    reason: str


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Look again at `time` (monotonic seconds): a container waits for its next try."""

    container: str
    time: float
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Finalize:
    """Forget the pod: nothing of it is left."""

    reason: str


Action = (
    CreateSandbox
    | PullImage
    | StartContainer
    | StopContainer
    | RemoveContainer
    | StopSandbox
    | RemoveSandbox
    | WaitUntil
    | Finalize
)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker remembers of its pod between passes. Lost by a restart, and then only time is lost.

    `crashes` and `failures` are the waits by container name: after it ended, and after
    its image or its start failed. `ended` is when an end was first seen, by id. `seen`
    are the started containers of the latest look, `gone` those that vanished since;
    `begun` are those whose startup probe has succeeded.
    """

    crashes: Mapping[str, Backoff] = field(default_factory=lambda: MappingProxyType({}))
    failures: Mapping[str, tuple[Backoff, str, str]] = field(default_factory=lambda: MappingProxyType({}))
    ended: Mapping[ContainerId, float] = field(default_factory=lambda: MappingProxyType({}))
    # Containers that are stopped for a probe, which this names.
    unhealthy: Mapping[ContainerId, str] = field(default_factory=dict)
    seen: tuple[ObservedContainer, ...] = ()
    gone: tuple[ObservedContainer, ...] = ()
    begun: frozenset[ContainerId] = frozenset()


def look_again(memory: Memory, observed: ObservedPod) -> Memory:
    """Note what is there, and what was there at the look before and was removed since."""
    present = {c.id for c in observed.containers}
    lost = tuple(_lost(c) for c in memory.seen if c.id not in present)
    gone = tuple(c for c in (*lost, *memory.gone) if _matters(c, observed))
    seen = tuple(c for c in observed.containers if c.state is not RuntimeState.CREATED)
    return replace(memory, seen=seen, gone=tuple({c.id: c for c in gone}.values()))


def _lost(container: ObservedContainer) -> ObservedContainer:
    """Return a removed container as one that ended: as it had, or as if it was killed."""
    if container.state is RuntimeState.EXITED:
        return replace(container, removed=True)
    return replace(
        container,
        removed=True,
        state=RuntimeState.EXITED,
        exit_code=_KILLED,
        reason="ContainerStatusUnknown",
        message="The container was removed at the runtime; how it ended is not known",
    )


def _matters(container: ObservedContainer, observed: ObservedPod) -> bool:
    """Tell whether a container that is gone is the latest of its name, or the one before that."""
    latest = observed.latest(container.name)
    return latest is None or container.attempt in (latest.attempt - 1, latest.attempt + 1)


def recall(memory: Memory, observed: ObservedPod) -> ObservedPod:
    """Add the containers that were removed, so that no count goes back and what has ended stays ended."""
    together = (*observed.containers, *memory.gone)
    return replace(observed, containers=tuple(sorted(together, key=lambda c: c.attempt, reverse=True)))


def remember(memory: Memory, observed: ObservedPod, now: float) -> Memory:
    """Note the ends that are seen for the first time, and their waits; forget what is gone."""
    ended = {c.id: memory.ended.get(c.id, now) for c in observed.containers if c.state is RuntimeState.EXITED}
    crashes = dict(memory.crashes)
    for container in observed.containers:
        newest = observed.latest(container.name)
        if container.id in ended and container.id not in memory.ended and newest is container:
            crashes.update(_crash(memory, container, now))
    alive = frozenset(c.id for c in observed.containers if c.state is RuntimeState.RUNNING)
    unhealthy = {key: why for key, why in memory.unhealthy.items() if key in alive}
    return replace(memory, ended=ended, crashes=crashes, unhealthy=unhealthy)


def _crash(memory: Memory, container: ObservedContainer, now: float) -> dict[str, Backoff]:
    """The first end waits for nothing; each further one waits, and doubles the wait."""
    if container.attempt == 0:
        return {container.name: Backoff(0.0, now)}
    previous = memory.crashes.get(container.name)
    if previous is not None and previous.delay_seconds == 0:
        previous = None
    return {container.name: after_failure(previous, now, good_seconds=_ran_seconds(container))}


def _ran_seconds(container: ObservedContainer) -> float:
    if container.started_at is None or container.finished_at is None:
        return 0.0
    return (container.finished_at - container.started_at).total_seconds()


def failed(memory: Memory, container: str, now: float, reason: str, message: str) -> Memory:
    """Note that a container's image or start failed, and let it wait."""
    previous = memory.failures.get(container)
    backoff = after_failure(previous[0] if previous else None, now)
    return replace(memory, failures={**memory.failures, container: (backoff, reason, message)})


def started(memory: Memory, container: str) -> Memory:
    """Note that a container started: its failures are forgotten, its crashes are not."""
    return replace(memory, failures={k: v for k, v in memory.failures.items() if k != container})


def restarts(policy: RestartPolicy, exit_code: int) -> bool:
    """Tell whether a container that ended with `exit_code` starts again."""
    return policy is RestartPolicy.ALWAYS or (policy is RestartPolicy.ON_FAILURE and exit_code != 0)


def finished(pod: Pod, observed: ObservedPod) -> bool:
    """Tell whether every container has ended for good."""
    latest = [observed.latest(container.name) for container in pod.spec.containers]
    return all(
        c is not None
        and c.state is RuntimeState.EXITED
        and not restarts(pod.spec.restart_policy, c.exit_code)
        for c in latest
    )


def plan_pod(pod: Pod, observed: ObservedPod, memory: Memory, now: float) -> tuple[Action, ...]:
    """Return what to do, in order; nothing when the pod is as it should be."""
    if pod.deletion_time is not None:
        return tuple(_plan_deletion(pod, observed))
    if finished(pod, observed):
        sandbox = observed.sandbox()
        ready = sandbox is not None and sandbox.ready
        return (StopSandbox(sandbox.id, "every container has ended"),) if sandbox and ready else ()
    return tuple(_plan_running(pod, observed, memory, now))


def _plan_deletion(pod: Pod, observed: ObservedPod) -> Iterator[Action]:
    asked = pod.deletion_grace_seconds
    grace = pod.spec.termination_grace_period_seconds if asked is None else asked
    # A grace of 0 means now; any other gets time enough for the signal to arrive.
    seconds = 0 if grace == 0 else max(MIN_GRACE_SECONDS, grace)
    for container in observed.containers:
        if container.state in _LIVE:
            yield StopContainer(container.id, container.name, seconds, "the pod was deleted")
    for sandbox in observed.sandboxes:
        if sandbox.ready:
            yield StopSandbox(sandbox.id, "the pod was deleted")
    for sandbox in observed.sandboxes:
        yield RemoveSandbox(sandbox.id, "the pod was deleted")
    for container in observed.homeless():
        yield RemoveContainer(container.id, "the pod was deleted")
    yield Finalize("nothing of the pod is left")


def _plan_running(pod: Pod, observed: ObservedPod, memory: Memory, now: float) -> Iterator[Action]:
    sandbox = observed.sandbox()
    steps = [_plan_container(pod, c, observed, memory, now) for c in pod.spec.containers]
    wants_sandbox = any(isinstance(action, StartContainer) for step in steps for action in step)
    if wants_sandbox and (sandbox is None or not sandbox.ready):
        yield from _plan_sandbox(observed)
    for step in steps:
        yield from step
    yield from _plan_tidying(observed)


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


def _plan_container(
    pod: Pod, spec: Container, observed: ObservedPod, memory: Memory, now: float
) -> list[Action]:
    latest, sandbox = observed.latest(spec.name), observed.sandbox()
    if latest is None:
        return _start(spec, 0, memory, now, "the container does not exist")
    if latest.state is RuntimeState.RUNNING and sandbox is not None and sandbox.ready:
        if latest.id not in memory.unhealthy:
            return []
        grace = pod.spec.termination_grace_period_seconds
        return [StopContainer(latest.id, spec.name, grace, memory.unhealthy[latest.id])]
    if latest.state is RuntimeState.UNKNOWN and sandbox is not None and sandbox.ready:
        if latest.reason == PAUSED:
            return []
        return [StopContainer(latest.id, spec.name, 0, "nobody knows whether it runs")]
    if latest.state is RuntimeState.CREATED:
        steps = _start(spec, latest.attempt, memory, now, "the container was created and not started")
        waits = bool(steps) and isinstance(steps[0], WaitUntil)
        return steps if waits else [RemoveContainer(latest.id, "it was created and not started"), *steps]
    if latest.state is RuntimeState.EXITED and not restarts(pod.spec.restart_policy, latest.exit_code):
        return []
    crash = memory.crashes.get(spec.name)
    if crash is not None and crash.due() > now:
        message = f"back-off {crash.delay_seconds:.0f}s restarting failed container={spec.name}"
        return [WaitUntil(spec.name, crash.due(), "CrashLoopBackOff", message)]
    why = f"the container ended with exit code {latest.exit_code}"
    return _start(spec, latest.attempt + 1, memory, now, why)


def _start(spec: Container, attempt: int, memory: Memory, now: float, reason: str) -> list[Action]:
    failure = memory.failures.get(spec.name)
    if failure is not None and failure[0].due() > now:
        return [WaitUntil(spec.name, failure[0].due(), failure[1], failure[2])]
    return [
        PullImage(spec.name, spec.image, spec.image_pull_policy, reason),
        StartContainer(spec.name, attempt, reason),
    ]


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
