"""Decide what to do for one container of a pod. Pure. `plan` has the rules and their order."""

from __future__ import annotations

from dataclasses import dataclass

from services.kubelet.core.action import (
    Action,
    PullImage,
    RemoveContainer,
    RunPostStart,
    StartContainer,
    StopContainer,
    WaitUntil,
)
from services.kubelet.core.begin import here, is_sidecar
from services.kubelet.core.memory import HookState, Memory
from services.kubelet.core.model import Container, Pod
from services.kubelet.core.observed import (
    PAUSED,
    ObservedContainer,
    ObservedPod,
    ObservedSandbox,
    RuntimeState,
)
from services.kubelet.core.restarts import comes_back
from services.kubelet.core.spec_hash import changed


@dataclass(frozen=True, slots=True)
class Scene:
    """What a decision is made from."""

    pod: Pod
    observed: ObservedPod
    memory: Memory
    now: float

    @property
    def box(self) -> ObservedSandbox | None:
        """The newest sandbox, if it is ready."""
        sandbox = self.observed.sandbox()
        return sandbox if sandbox is not None and sandbox.ready else None


def plan_lasting(scene: Scene, spec: Container) -> list[Action]:
    """Decide for a main container or a sidecar."""
    latest = scene.observed.latest(spec.name)
    if latest is None:
        return start(scene, spec, 0, "the container does not exist")
    if latest.state is RuntimeState.RUNNING and scene.box is not None:
        return _keep(scene, spec, latest)
    if latest.state is RuntimeState.UNKNOWN and scene.box is not None:
        return _settle(latest)
    if latest.state is RuntimeState.CREATED:
        return _anew(scene, spec, latest)
    if latest.id in scene.memory.changed:
        return start(scene, spec, latest.attempt + 1, "its definition changed")
    stays = not is_sidecar(scene.pod.spec, spec) and not comes_back(scene.pod, spec, latest.exit_code)
    if latest.state is RuntimeState.EXITED and stays:
        return []
    return _wait(scene, spec) or start(scene, spec, latest.attempt + 1, _end(latest))


def plan_initial(scene: Scene, spec: Container) -> list[Action]:
    """Decide for the init container that is awaited, which has not ended well in this sandbox."""
    latest = scene.observed.latest(spec.name)
    if latest is None:
        return start(scene, spec, 0, "the container does not exist")
    if here(scene.observed, spec.name) is None:
        return start(scene, spec, latest.attempt + 1, "it has not run in this sandbox")
    match latest.state:
        case RuntimeState.RUNNING:
            return []
        case RuntimeState.UNKNOWN:
            return _settle(latest)
        case RuntimeState.CREATED:
            return _anew(scene, spec, latest)
        case RuntimeState.EXITED:
            return _wait(scene, spec) or start(scene, spec, latest.attempt + 1, _end(latest))


def plan_ephemeral(scene: Scene, spec: Container) -> list[Action]:
    """Decide for an ephemeral container: it starts once, in a sandbox that is there."""
    latest = scene.observed.latest(spec.name)
    if scene.box is None:
        return []
    if latest is None:
        return start(scene, spec, 0, "it was added to the pod")
    return _anew(scene, spec, latest) if latest.state is RuntimeState.CREATED else []


def start(scene: Scene, spec: Container, attempt: int, reason: str) -> list[Action]:
    """Start a container, or wait for its next try after its image or its start failed."""
    failure = scene.memory.failures.get(spec.name)
    if failure is not None and failure[0].due() > scene.now:
        return [WaitUntil(spec.name, failure[0].due(), failure[1], failure[2])]
    return [
        PullImage(spec.name, spec.image, spec.image_pull_policy, reason),
        StartContainer(spec.name, attempt, reason),
    ]


def _keep(scene: Scene, spec: Container, latest: ObservedContainer) -> list[Action]:
    """Leave a running container alone, unless it is ill or wanted otherwise."""
    memory, grace = scene.memory, scene.pod.spec.termination_grace_period_seconds
    ailment, hook = memory.unhealthy.get(latest.id), memory.hooks.get(latest.id)
    if changed(spec, latest):
        event = f"Container {spec.name} definition changed, will be restarted"
        return [StopContainer(latest.id, spec.name, grace, "its definition changed", event=event)]
    if ailment is not None:
        seconds = grace if ailment.grace_seconds is None else ailment.grace_seconds
        return [StopContainer(latest.id, spec.name, seconds, ailment.reason)]
    if hook is HookState.FAILED:
        return [StopContainer(latest.id, spec.name, grace, "its postStart hook failed")]
    if hook is None and spec.lifecycle.post_start is not None:
        return [RunPostStart(latest.id, spec.name, "it runs, and its hook has not run")]
    return []


def _settle(latest: ObservedContainer) -> list[Action]:
    """Stop what may run and may not; whoever paused a container lets it go on."""
    if latest.reason == PAUSED:
        return []
    return [StopContainer(latest.id, latest.name, 0, "nobody knows whether it runs")]


def _anew(scene: Scene, spec: Container, latest: ObservedContainer) -> list[Action]:
    steps = start(scene, spec, latest.attempt, "the container was created and not started")
    if isinstance(steps[0], WaitUntil):
        return steps
    return [RemoveContainer(latest.id, "it was created and not started"), *steps]


def _wait(scene: Scene, spec: Container) -> list[Action]:
    crash = scene.memory.crashes.get(spec.name)
    if crash is None or crash.due() <= scene.now:
        return []
    message = f"back-off {crash.delay_seconds:.0f}s restarting failed container={spec.name}"
    return [WaitUntil(spec.name, crash.due(), "CrashLoopBackOff", message)]


def _end(latest: ObservedContainer) -> str:
    return f"the container ended with exit code {latest.exit_code}"
