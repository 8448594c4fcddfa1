"""Compute a pod's status from what was seen. Pure.

A pod is Pending until its init containers are done, also when they run again in a new
sandbox; it has succeeded or failed when nothing of it runs any more. One that was deleted ends so
whatever its restart policy: whoever counts ended pods (Job) waits for it.
Source: Kubernetes "Pod Lifecycle": phases, conditions, container states; the kubelet's
`getPhase` and `status/generate.go`, `status_manager.go` `TerminatePod`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any

from services.kubelet.core import readiness_gates
from services.kubelet.core.begin import awaited, failed_init, here, is_sidecar
from services.kubelet.core.memory import Over
from services.kubelet.core.model import Container, ContainerId, Pod, PodUid
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.render import rfc3339
from services.kubelet.core.restarts import comes_back


class PodPhase(Enum):
    """Where a pod is in its life."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


_ENDED = (PodPhase.SUCCEEDED, PodPhase.FAILED)


class StatePhase(Enum):
    """State of a container for people."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class ContainerState:
    """State of a container, with its reason."""

    phase: StatePhase
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """Status of one container; `started` once its hook and its startup probe have succeeded."""

    name: str
    image: str
    state: ContainerState
    image_id: str = ""
    container_id: str = ""
    ready: bool = False
    restart_count: int = 0
    last_state: ContainerState | None = None
    started: bool = False


@dataclass(frozen=True, slots=True)
class PodCondition:
    """One condition, true or false."""

    type: str
    holds: bool
    reason: str = ""
    message: str = ""
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class PodStatus:
    """Status of a pod."""

    uid: PodUid
    namespace: str
    name: str
    phase: PodPhase
    conditions: tuple[PodCondition, ...] = ()
    containers: tuple[ContainerStatus, ...] = ()
    pod_ips: tuple[str, ...] = ()
    host_ip: str = ""
    start_time: datetime | None = None
    deletion_time: datetime | None = None
    reason: str = ""
    message: str = ""
    trace_id: str = ""
    observed_generation: int = 0
    init_containers: tuple[ContainerStatus, ...] = ()
    ephemeral_containers: tuple[ContainerStatus, ...] = ()

    @property
    def every(self) -> tuple[ContainerStatus, ...]:
        """All containers of whatever kind."""
        return (*self.init_containers, *self.containers, *self.ephemeral_containers)

    @property
    def terminal(self) -> bool:
        """Whether the pod has ended for good."""
        return self.phase in _ENDED

    @property
    def ready(self) -> bool:
        """Whether the pod may take traffic."""
        return any(c.type == "Ready" and c.holds for c in self.conditions)

    @property
    def terminating(self) -> bool:
        """Whether the pod was deleted and is not gone yet."""
        return self.deletion_time is not None

    @property
    def serving(self) -> bool:
        """Whether every container is ready, terminating or not."""
        return bool(self.containers) and all(c.ready for c in self.containers)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a container does not run, as its worker knows."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a status depends on besides the pod and the runtime.

    `readiness` is the verdict of each container's readiness probe, by container id;
    absent means that there is none yet. `start_time` is when a run before saw the pod first.
    `started` are the instances that have started, of those that have a hook or a startup
    probe; `changed` those that ended to be made anew; `over` is why the pod has failed;
    `addresses` are those that it had last.
    """

    readiness: Mapping[str, bool]
    waiting: Mapping[str, Waiting]
    host_ip: str
    now: datetime
    trace_id: str = ""
    start_time: datetime | None = None
    started: Set[ContainerId] = frozenset()
    changed: Set[ContainerId] = frozenset()
    over: Over | None = None
    addresses: tuple[str, ...] = ()


def compute_status(
    pod: Pod, observed: ObservedPod, around: Circumstances, previous: PodStatus | None
) -> PodStatus:
    """Compute the status; a condition keeps its time while it does not change."""
    initial, containers, ephemeral = (
        tuple(_container(spec, pod, observed, around) for spec in specs)
        for specs in (pod.spec.init_containers, pod.spec.containers, pod.spec.ephemeral_containers)
    )
    sandbox = observed.sandbox()
    phase = _phase(pod, containers, observed, around, previous)
    over = around.over if phase is PodPhase.FAILED else None
    status = PodStatus(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        phase=phase,
        containers=containers,
        init_containers=initial,
        ephemeral_containers=ephemeral,
        reason=over.reason if over else "",
        message=over.message if over else "",
        pod_ips=_addresses(observed, phase, around),
        host_ip=around.host_ip,
        start_time=previous.start_time if previous else around.start_time or around.now,
        deletion_time=pod.deletion_time,
        trace_id=around.trace_id,
        observed_generation=pod.generation,
    )
    wired = sandbox is not None and sandbox.ready
    return replace(status, conditions=_conditions(pod, status, around.now, previous, wired=wired))


def _addresses(observed: ObservedPod, phase: PodPhase, around: Circumstances) -> tuple[str, ...]:
    """Return where a pod is, or where it was when it ended: others know it by that."""
    sandbox = observed.sandbox()
    if sandbox is not None and sandbox.ready:
        return sandbox.addresses
    return around.addresses if phase in _ENDED else ()


def _container(spec: Container, pod: Pod, observed: ObservedPod, around: Circumstances) -> ContainerStatus:
    latest = observed.latest(spec.name)
    waiting = around.waiting.get(spec.name)
    if latest is None:
        why = waiting or Waiting("PodInitializing" if pod.spec.init_containers else "ContainerCreating")
        return ContainerStatus(
            spec.name, spec.image, ContainerState(StatePhase.WAITING, why.reason, why.message)
        )
    state = _state(latest)
    earlier = observed.earlier(spec.name)
    last = _state(earlier[0]) if earlier else None
    ended = latest.state in (RuntimeState.EXITED, RuntimeState.CREATED)
    if ended and waiting is not None and pod.deletion_time is None:
        last = state if latest.state is RuntimeState.EXITED else last
        state = ContainerState(StatePhase.WAITING, waiting.reason, waiting.message)
    return ContainerStatus(
        name=spec.name,
        image=spec.image,
        state=state,
        image_id=latest.image_id,
        container_id=latest.id,
        ready=_ready(spec, pod, latest, around),
        restart_count=latest.attempt,
        last_state=last,
        started=_started(spec, latest, around),
    )


def _started(spec: Container, latest: ObservedContainer, around: Circumstances) -> bool:
    at_once = spec.startup_probe is None and spec.lifecycle.post_start is None
    return latest.state is RuntimeState.RUNNING and (at_once or latest.id in around.started)


def _ready(spec: Container, pod: Pod, latest: ObservedContainer, around: Circumstances) -> bool:
    if spec in pod.spec.ephemeral_containers:
        return False
    if spec in pod.spec.init_containers and not is_sidecar(pod.spec, spec):
        return latest.state is RuntimeState.EXITED and latest.exit_code == 0
    if latest.state is not RuntimeState.RUNNING:
        return False
    probed = spec.readiness_probe or spec.startup_probe or spec.lifecycle.post_start
    return probed is None or around.readiness.get(latest.id, False)


def _state(container: ObservedContainer) -> ContainerState:
    if container.state is RuntimeState.RUNNING:
        return ContainerState(StatePhase.RUNNING, started_at=container.started_at)
    if container.state is RuntimeState.EXITED:
        return ContainerState(
            StatePhase.TERMINATED,
            container.reason or ("Completed" if container.exit_code == 0 else "Error"),
            container.message,
            container.exit_code,
            container.started_at,
            container.finished_at,
        )
    if container.state is RuntimeState.UNKNOWN:
        why = container.reason or "ContainerStatusUnknown"
        return ContainerState(StatePhase.WAITING, why, container.message, started_at=container.started_at)
    return ContainerState(StatePhase.WAITING, "ContainerCreating", container.message)


def _phase(
    pod: Pod,
    containers: tuple[ContainerStatus, ...],
    observed: ObservedPod,
    around: Circumstances,
    previous: PodStatus | None,
) -> PodPhase:
    if previous is not None and previous.terminal:
        return previous.phase
    final = _final(pod, containers, observed, around)
    if pod.deletion_time is not None and not _lives(observed):
        # Nothing of it starts again, whatever its restart policy says.
        return final or _end(containers)
    if final is not None and not _lives(observed):
        return final
    before = previous.phase if previous is not None else PodPhase.PENDING
    if final is not None or pod.deletion_time is not None:
        return before if _unborn_any(containers) else PodPhase.RUNNING
    if not _initialized(pod, observed, around):
        return PodPhase.PENDING
    if _unborn_any(containers) and before is PodPhase.PENDING:
        return PodPhase.PENDING
    return PodPhase.RUNNING


def _final(
    pod: Pod, containers: tuple[ContainerStatus, ...], observed: ObservedPod, around: Circumstances
) -> PodPhase | None:
    """Return how the pod has ended, or is about to; None for one that goes on."""
    if around.over is not None or failed_init(pod, observed) is not None:
        return PodPhase.FAILED
    pairs = list(zip(pod.spec.containers, containers, strict=True))
    if not all(_has_ended(pod, spec, status, around) for spec, status in pairs):
        return None
    return _end(containers)


def _end(containers: tuple[ContainerStatus, ...]) -> PodPhase:
    """Return how a pod has ended: of a container that never ran nobody knows that it went well."""
    good = all(status.state.exit_code == 0 for status in containers)
    return PodPhase.SUCCEEDED if good else PodPhase.FAILED


def _lives(observed: ObservedPod) -> bool:
    return any(c.state in (RuntimeState.RUNNING, RuntimeState.UNKNOWN) for c in observed.containers)


def _unborn_any(containers: tuple[ContainerStatus, ...]) -> bool:
    return any(_unborn(container) for container in containers)


def _unborn(container: ContainerStatus) -> bool:
    waits = container.state.phase is StatePhase.WAITING
    return waits and container.last_state is None and container.state.started_at is None


def _has_ended(pod: Pod, spec: Container, status: ContainerStatus, around: Circumstances) -> bool:
    if status.state.phase is not StatePhase.TERMINATED or status.container_id in around.changed:
        return False
    return not comes_back(pod, spec, status.state.exit_code or 0)


def _initialized(pod: Pod, observed: ObservedPod, around: Circumstances) -> bool:
    """Tell whether the init containers are done in the present sandbox."""
    box = observed.sandbox()
    if not pod.spec.init_containers:
        return True
    begun = {
        seen.id
        for spec in pod.spec.sidecars
        if (seen := here(observed, spec.name)) is not None and _started(spec, seen, around)
    }
    return box is not None and box.ready and awaited(pod.spec, observed, begun) is None


def _conditions(
    pod: Pod, status: PodStatus, now: datetime, previous: PodStatus | None, *, wired: bool
) -> tuple[PodCondition, ...]:
    unready = [c.name for c in _lasting(pod, status) if not c.ready]
    reason, message = "", ""
    if status.terminal:
        reason = "PodCompleted" if status.phase is PodPhase.SUCCEEDED else "PodFailed"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    ready = not status.terminal and not unready
    gates = readiness_gates.unmet(pod) if ready else ""
    computed = (
        PodCondition("PodScheduled", True),
        PodCondition("PodReadyToStartContainers", wired),
        _initialized_condition(pod, status),
        PodCondition("ContainersReady", ready, reason, message),
        PodCondition("Ready", False, readiness_gates.REASON, gates)
        if gates
        else PodCondition("Ready", ready, reason, message),
    )
    before = {c.type: c for c in previous.conditions} if previous else {}
    return tuple(_timed(condition, before.get(condition.type), now) for condition in computed)


def _lasting(pod: Pod, status: PodStatus) -> list[ContainerStatus]:
    names = {spec.name for spec in pod.spec.lasting}
    return [container for container in status.every if container.name in names]


def _initialized_condition(pod: Pod, status: PodStatus) -> PodCondition:
    """Say whether the init containers are done: also when a main container has run, which comes after."""
    if status.phase is PodPhase.SUCCEEDED:
        return PodCondition("Initialized", True, "PodCompleted")
    sidecars = {spec.name for spec in pod.spec.sidecars}
    undone = [c.name for c in status.init_containers if not (c.started if c.name in sidecars else c.ready)]
    begun = any(c.state.started_at is not None or c.last_state is not None for c in status.containers)
    if not undone or (begun and status.phase is not PodPhase.PENDING):
        return PodCondition("Initialized", True)
    message = f"containers with incomplete status: [{' '.join(undone)}]"
    return PodCondition("Initialized", False, "ContainersNotInitialized", message)


def _timed(condition: PodCondition, before: PodCondition | None, now: datetime) -> PodCondition:
    kept = before.since if before is not None and before.holds is condition.holds else now
    return replace(condition, since=kept)


def to_kubernetes(status: PodStatus) -> dict[str, Any]:
    """Write a status as Kubernetes JSON."""
    made: dict[str, Any] = {
        "phase": status.phase.value,
        "conditions": [_condition_json(c) for c in status.conditions],
        "initContainerStatuses": [_container_json(c) for c in status.init_containers],
        "containerStatuses": [_container_json(c) for c in status.containers],
        "ephemeralContainerStatuses": [_container_json(c) for c in status.ephemeral_containers],
        "hostIP": status.host_ip,
        "podIP": status.pod_ips[0] if status.pod_ips else "",
        "podIPs": [{"ip": address} for address in status.pod_ips],
        "startTime": rfc3339(status.start_time),
        "reason": status.reason,
        "message": status.message,
    }
    return {key: value for key, value in made.items() if value}


def _condition_json(condition: PodCondition) -> dict[str, Any]:
    made = {
        "type": condition.type,
        "status": "True" if condition.holds else "False",
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": rfc3339(condition.since),
    }
    return {key: value for key, value in made.items() if value}


def _container_json(status: ContainerStatus) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": status.name,
        "image": status.image,
        "imageID": status.image_id,
        "ready": status.ready,
        "started": status.started,
        "restartCount": status.restart_count,
        "state": _state_json(status.state),
    }
    if status.container_id:
        made["containerID"] = f"docker://{status.container_id}"
    if status.last_state is not None:
        made["lastState"] = _state_json(status.last_state)
    return made


def _state_json(state: ContainerState) -> dict[str, Any]:
    values = {
        "reason": state.reason,
        "message": state.message,
        "exitCode": state.exit_code,
        "startedAt": rfc3339(state.started_at),
        "finishedAt": rfc3339(state.finished_at),
    }
    return {state.phase.value: {k: v for k, v in values.items() if v is not None and v != ""}}
