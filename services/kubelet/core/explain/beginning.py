"""Say which init container a pod waits for, and what of a container's start is not over. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from services.kubelet.core.begin import is_sidecar
from services.kubelet.core.explain.cause import Cause, Container
from services.kubelet.core.memory import HookState
from services.kubelet.core.observed import ObservedContainer, RuntimeState


def running_init(container: Container) -> Cause | None:
    """Say that an init container is waited for that runs; None for one that does not, and for sidecars."""
    spec, latest = container.pod.spec, container.latest
    runs = latest is not None and latest.state is RuntimeState.RUNNING
    if latest is None or not runs or is_sidecar(spec, container.spec):
        return None
    names = [c.name for c in spec.init_containers]
    place, last = names.index(container.spec.name) + 1, names[-1] == container.spec.name
    follows = "the main containers are" if last else f"{names[place]} is"
    return container.cause(
        "Initializing",
        f"it runs: init container {place} of {len(names)}",
        f"{follows} started when it has ended with exit code 0",
        since=latest.started_at,
    )


def waits(container: Container, awaited: str) -> Cause:
    """Say that a main container waits for an init container."""
    what = "it is started when the init containers are done"
    return container.cause("PodInitializing", f"it waits for init container {awaited}", what)


def hook(container: Container, latest: ObservedContainer) -> Iterator[Cause]:
    """Yield that a running container's postStart hook has not succeeded."""
    state = container.memory.hooks.get(latest.id)
    if container.spec.lifecycle.post_start is None or state is HookState.DONE:
        return
    event = container.latest_event("FailedPostStartHook")
    if state is HookState.FAILED:
        what = "it is stopped, and started again as its restart policy says"
        yield container.cause("PostStartHookFailed", "its postStart hook failed", what, evidence=event)
        return
    message, what = "its postStart hook has not ended yet", "then its probes run"
    yield container.cause("PostStartHook", message, what, since=latest.started_at, evidence=event)
