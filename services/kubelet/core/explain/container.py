"""Say why one container is not ready, since when, and what is tried next. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from services.kubelet.core import plan
from services.kubelet.core.backoff import Backoff
from services.kubelet.core.begin import is_sidecar
from services.kubelet.core.explain.beginning import hook
from services.kubelet.core.explain.cause import Cause, Container, exit_words, seconds
from services.kubelet.core.explain.probing import liveness, ready, startup, unready
from services.kubelet.core.observed import ObservedContainer, RuntimeState
from services.kubelet.core.restarts import comes_back, policy_of

_FAILED = {"ErrImagePull": "pulling its image failed", "ErrImageNeverPull": "its image may not be pulled"}
_TRIED = {
    "ErrImagePull": "the image is pulled again",
    "ErrImageNeverPull": "put the image on this node, or change imagePullPolicy; it is looked for again",
}


def causes_of(container: Container) -> Iterator[Cause]:
    """Yield why a container is not ready, or is about to be killed; nothing when it is fine."""
    latest, probe = container.latest, container.spec.readiness_probe
    if latest is None or latest.state is not RuntimeState.RUNNING:
        yield _stopped(container, latest)
        return
    yield from liveness(container)
    if container.status is not None and container.status.ready:
        return
    hooked = list(hook(container, latest))
    if hooked:
        yield from hooked
        return
    if container.spec.startup_probe is not None:
        starting = list(startup(container, latest, container.spec.startup_probe))
        if starting:
            yield from starting
            return
    if probe is not None:
        yield unready(container, latest, probe)
    elif container.status is not None:
        message, what = "it runs, and its status is not told yet", "it is ready as soon as that is told"
        yield container.cause("Starting", message, what, since=latest.started_at)


def health(container: Container) -> Cause:
    """Say why a container counts as ready, or what is about to end that."""
    return next(liveness(container), None) or ready(container)


def _stopped(container: Container, latest: ObservedContainer | None) -> Cause:
    step = _own_step(container)
    if step is not None:
        return step
    failure = container.memory.failures.get(container.spec.name)
    if failure is not None:
        return _failed_start(container, *failure)
    if latest is not None and latest.state is RuntimeState.EXITED:
        return _ended(container, latest)
    due = container.next_seconds
    if latest is not None and latest.state is RuntimeState.CREATED:
        message, what = "it was created and not started", "it is removed, created anew and started"
        return container.cause("CreatedNotStarted", message, what, next_seconds=due)
    if latest is not None:
        message, what = "the runtime cannot tell its state", "it is looked at again"
        return container.cause("StateUnknown", message, what, next_seconds=due)
    busy = getattr(container.doing.action, "container", "") if container.doing else ""
    what = f"container {busy} comes first" if busy else "its image is looked for, then it is started"
    return container.cause("ContainerCreating", "it is not created yet", what, next_seconds=due)


def _own_step(container: Container) -> Cause | None:
    """Return what the worker does for this container just now."""
    doing = container.doing
    if doing is None or getattr(doing.action, "container", "") != container.spec.name:
        return None
    if isinstance(doing.action, plan.PullImage):
        message, what = f"its image {doing.action.image} is being pulled", "then it is created and started"
        pulling = container.latest_event("Pulling")
        return container.cause("Pulling", message, what, since=doing.since, evidence=pulling)
    if isinstance(doing.action, plan.StartContainer):
        message, what = f"it is being started: {doing.action.reason}", "then its probes run"
        return container.cause("Starting", message, what, since=doing.since)
    return None


def _failed_start(container: Container, backoff: Backoff, reason: str, message: str) -> Cause:
    event = container.latest_event("Failed") or container.latest_event(reason)
    wait = f" (this wait is {seconds(backoff.delay_seconds)}, each failure doubles it up to 300 s)"
    return container.cause(
        "ImagePullBackOff" if reason == "ErrImagePull" else reason,
        f"{_FAILED.get(reason, 'starting it failed')}: {message}",
        _TRIED.get(reason, "it is started again") + wait,
        since=event[0].first_time if event else None,
        next_seconds=container.seconds_until(backoff.due()),
        evidence=event,
    )


def _ended(container: Container, latest: ObservedContainer) -> Cause:
    message, since = _end_words(latest), latest.finished_at
    policy = policy_of(container.pod, container.spec)
    sidecar = is_sidecar(container.pod.spec, container.spec)
    if not sidecar and not comes_back(container.pod, container.spec, latest.exit_code):
        word = "Completed" if latest.exit_code == 0 else latest.reason or "Error"
        what = f"nothing: restartPolicy {policy.value} does not start it again; the others go on"
        return container.cause(word, message, what, since=since)
    crash = container.memory.crashes.get(container.spec.name)
    left = container.seconds_until(crash.due() if crash else None)
    if crash is None or not left:
        due = container.next_seconds
        return container.cause("Restarting", message, "it is started again", since=since, next_seconds=due)
    wait = f" (this wait is {seconds(crash.delay_seconds)}, each end doubles it up to 300 s)"
    return container.cause(
        "CrashLoopBackOff",
        f"{message}; it has ended {latest.attempt + 1} times",
        f"it is started again{wait}",
        since=since,
        next_seconds=left,
        evidence=container.latest_event("BackOff"),
    )


def _end_words(latest: ObservedContainer) -> str:
    words = f"it ended with {exit_words(latest.exit_code, latest.reason)}"
    if latest.started_at and latest.finished_at:
        words += f" after {seconds((latest.finished_at - latest.started_at).total_seconds())}"
    return words + (f": {latest.message}" if latest.message else "")
