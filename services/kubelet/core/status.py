"""Compute a pod's status from what was seen. Pure.

Source: Kubernetes "Pod Lifecycle": phases, conditions, container states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any

from services.kubelet.core.model import Container, Pod, PodUid, RestartPolicy
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.plan import restarts
from services.kubelet.core.render import rfc3339


class PodPhase(Enum):
    """Where a pod is in its life."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


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
    """Status of one container."""

    name: str
    image: str
    state: ContainerState
    image_id: str = ""
    container_id: str = ""
    ready: bool = False
    restart_count: int = 0
    last_state: ContainerState | None = None


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

    @property
    def ready(self) -> bool:
        """Whether the pod may take traffic."""
        return any(c.type == "Ready" and c.holds for c in self.conditions)

    @property
    def ended(self) -> bool:
        """Whether the pod has ended for good."""
        return self.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)

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
    """

    readiness: Mapping[str, bool]
    waiting: Mapping[str, Waiting]
    host_ip: str
    now: datetime
    trace_id: str = ""
    start_time: datetime | None = None


def compute_status(
    pod: Pod, observed: ObservedPod, around: Circumstances, previous: PodStatus | None
) -> PodStatus:
    """Compute the status; a condition keeps its time while it does not change."""
    containers = tuple(_container(spec, pod, observed, around) for spec in pod.spec.containers)
    sandbox = observed.sandbox()
    status = PodStatus(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        phase=_phase(pod, containers, previous),
        containers=containers,
        pod_ips=sandbox.addresses if sandbox and sandbox.ready else (),
        host_ip=around.host_ip,
        start_time=previous.start_time if previous else around.start_time or around.now,
        deletion_time=pod.deletion_time,
        trace_id=around.trace_id,
    )
    wired = sandbox is not None and sandbox.ready
    return replace(status, conditions=_conditions(status, around.now, previous, wired=wired))


def _container(spec: Container, pod: Pod, observed: ObservedPod, around: Circumstances) -> ContainerStatus:
    latest = observed.latest(spec.name)
    waiting = around.waiting.get(spec.name)
    if latest is None:
        why = waiting or Waiting("ContainerCreating")
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
        ready=_ready(spec, latest, around),
        restart_count=latest.attempt,
        last_state=last,
    )


def _ready(spec: Container, latest: ObservedContainer, around: Circumstances) -> bool:
    if latest.state is not RuntimeState.RUNNING:
        return False
    probed = spec.readiness_probe is not None or spec.startup_probe is not None
    return not probed or around.readiness.get(latest.id, False)


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


def _phase(pod: Pod, containers: tuple[ContainerStatus, ...], previous: PodStatus | None) -> PodPhase:
    if previous is not None and previous.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED):
        return previous.phase
    ended = [c for c in containers if _has_ended(c, pod.spec.restart_policy)]
    if len(ended) == len(containers):
        good = all(_last_exit(c) == 0 for c in containers)
        return PodPhase.SUCCEEDED if good else PodPhase.FAILED
    unborn = any(_unborn(c) for c in containers)
    if unborn and (previous is None or previous.phase is PodPhase.PENDING):
        return PodPhase.PENDING
    return PodPhase.RUNNING


def _unborn(container: ContainerStatus) -> bool:
    waits = container.state.phase is StatePhase.WAITING
    return waits and container.last_state is None and container.state.started_at is None


def _has_ended(container: ContainerStatus, policy: RestartPolicy) -> bool:
    if container.state.phase is not StatePhase.TERMINATED:
        return False
    return not restarts(policy, container.state.exit_code or 0)


def _last_exit(container: ContainerStatus) -> int:
    return container.state.exit_code or 0


def _conditions(
    status: PodStatus, now: datetime, previous: PodStatus | None, *, wired: bool
) -> tuple[PodCondition, ...]:
    ended = status.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)
    unready = [c.name for c in status.containers if not c.ready]
    reason, message = "", ""
    if ended:
        reason = "PodCompleted" if status.phase is PodPhase.SUCCEEDED else "PodFailed"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    ready = not ended and not unready
    computed = (
        PodCondition("PodScheduled", True),
        PodCondition("PodReadyToStartContainers", wired),
        PodCondition("Initialized", True, "PodCompleted" if status.phase is PodPhase.SUCCEEDED else ""),
        PodCondition("ContainersReady", ready, reason, message),
        PodCondition("Ready", ready, reason, message),
    )
    before = {c.type: c for c in previous.conditions} if previous else {}
    return tuple(_timed(condition, before.get(condition.type), now) for condition in computed)


def _timed(condition: PodCondition, before: PodCondition | None, now: datetime) -> PodCondition:
    kept = before.since if before is not None and before.holds is condition.holds else now
    return replace(condition, since=kept)


def to_kubernetes(status: PodStatus) -> dict[str, Any]:
    """Write a status as Kubernetes JSON."""
    made: dict[str, Any] = {
        "phase": status.phase.value,
        "conditions": [_condition_json(c) for c in status.conditions],
        "containerStatuses": [_container_json(c) for c in status.containers],
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
        "started": status.state.phase is StatePhase.RUNNING,
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
