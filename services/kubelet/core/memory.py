"""What a pod's worker remembers between passes, and how it learns. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from services.kubelet.core.backoff import Backoff, after_failure
from services.kubelet.core.model import ContainerId
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState

_KILLED = 137


class HookState(Enum):
    """How the postStart hook of a container stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ailment:
    """Why a running container is stopped, and how long it gets; None is the pod's grace."""

    reason: str
    grace_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Over:
    """Why a pod has failed whatever its containers do."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker remembers of its pod between passes.

    `crashes` and `failures` are the waits by container name: after it ended, and after
    its image or its start failed. `ended` is when an end was first seen, by id.
    `unhealthy` are those that are stopped for a probe. A restart loses these, and with
    them time alone; `record` keeps the others. `seen` are the started containers of the
    latest look, `gone` those that vanished since; `begun` are those whose startup probe
    has succeeded, `hooks` says how their postStart hooks stand, `changed` are those that
    are stopped since the pod's spec wants them otherwise, and start again whatever
    their restart policy says. `over` ends the pod. `addresses` are those of its latest sandbox that ran.
    """

    crashes: Mapping[str, Backoff] = field(default_factory=lambda: MappingProxyType({}))
    failures: Mapping[str, tuple[Backoff, str, str]] = field(default_factory=lambda: MappingProxyType({}))
    ended: Mapping[ContainerId, float] = field(default_factory=lambda: MappingProxyType({}))
    unhealthy: Mapping[ContainerId, Ailment] = field(default_factory=dict)
    seen: tuple[ObservedContainer, ...] = ()
    gone: tuple[ObservedContainer, ...] = ()
    begun: frozenset[ContainerId] = frozenset()
    hooks: Mapping[ContainerId, HookState] = field(default_factory=dict)
    changed: frozenset[ContainerId] = frozenset()
    over: Over | None = None
    addresses: tuple[str, ...] = ()


def look_again(memory: Memory, observed: ObservedPod) -> Memory:
    """Note what is there, and what was there at the look before and was removed since."""
    present = {c.id for c in observed.containers}
    lost = tuple(_lost(c) for c in memory.seen if c.id not in present)
    gone = tuple(c for c in (*lost, *memory.gone) if _matters(c, observed))
    seen = tuple(c for c in observed.containers if c.state is not RuntimeState.CREATED)
    sandbox = observed.sandbox()
    addresses = sandbox.addresses if sandbox is not None and sandbox.ready else memory.addresses
    return replace(memory, seen=seen, gone=tuple({c.id: c for c in gone}.values()), addresses=addresses)


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
    there = frozenset(c.id for c in observed.containers)
    return replace(memory, ended=ended, crashes=crashes, unhealthy=unhealthy, changed=memory.changed & there)


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


def forgive(memory: Memory, reason: str) -> Memory:
    """Try those again at once that failed for a reason: what they miss may be there now."""
    return replace(memory, failures={k: v for k, v in memory.failures.items() if v[1] != reason})


def succeeded(memory: Memory, container: str) -> Memory:
    """Note that a container started: its failures are forgotten, its crashes are not."""
    return replace(memory, failures={k: v for k, v in memory.failures.items() if k != container})
