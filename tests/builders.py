"""Valid objects, of which a test names only what matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.kubelet.core.model import Container, ContainerId, Pod, PodSpec, PodUid, SandboxId
from services.kubelet.core.observed import ObservedContainer, ObservedPod, ObservedSandbox, RuntimeState


def a_container(**values: Any) -> Container:
    """Make a container."""
    return replace(Container(name="app", image="app:1"), **values)


def a_pod(*containers: Container, uid: str = "uid-1", **values: Any) -> Pod:
    """Make a pod; values of its spec and of the pod itself may be mixed."""
    of_spec = {name: values.pop(name) for name in list(values) if name in PodSpec.__dataclass_fields__}
    spec = PodSpec(containers=containers or (a_container(),), **of_spec)
    return replace(Pod(PodUid(uid), "default", "web", spec), **values)


def a_sandbox(attempt: int = 0, *, ready: bool = True) -> ObservedSandbox:
    """Make a sandbox with an address."""
    addresses = (f"10.0.0.{attempt + 2}",) if ready else ()
    return ObservedSandbox(SandboxId(f"sandbox-{attempt}"), attempt, ready, addresses)


def an_instance(state: RuntimeState, attempt: int = 0, **values: Any) -> ObservedContainer:
    """Make an instance of the container `app` in sandbox 0."""
    made = ObservedContainer(ContainerId(f"app-{attempt}"), "app", attempt, state, SandboxId("sandbox-0"))
    return replace(made, **values)


def observed(
    *containers: ObservedContainer, sandboxes: tuple[ObservedSandbox, ...] | None = None
) -> ObservedPod:
    """Make an observation; with a ready sandbox unless others are given."""
    boxes = (a_sandbox(),) if sandboxes is None else sandboxes
    ordered = sorted(containers, key=lambda c: c.attempt, reverse=True)
    return ObservedPod(PodUid("uid-1"), sandboxes=boxes, containers=tuple(ordered))
