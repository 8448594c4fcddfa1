"""Say why a pod is not Ready: the node, the pod, then its containers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from services.kubelet.core import plan
from services.kubelet.core.begin import awaited, here, started
from services.kubelet.core.events import Event
from services.kubelet.core.explain.beginning import running_init, waits
from services.kubelet.core.explain.cause import Cause, Container, Scope, exit_words
from services.kubelet.core.explain.container import causes_of, health
from services.kubelet.core.explain.facts import Explanation, Facts, Verdict, Work
from services.kubelet.core.model import Container as Spec
from services.kubelet.core.model import Pod
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.core.plan import Action
from services.kubelet.core.status import PodPhase, PodStatus


def explain(facts: Facts) -> Explanation:
    """Explain one pod."""
    work = facts.work or Work()
    verdict = _verdict(facts.pod, work.status)
    causes = (*_node(facts), *_pod(facts, work, verdict))
    return Explanation(
        verdict, _sentence(facts, verdict, causes), _since(facts, work, verdict), causes, work.trace_id
    )


def _verdict(pod: Pod, status: PodStatus | None) -> Verdict:
    if pod.deletion_time is not None:
        return Verdict.DELETING
    if status is not None and status.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED):
        return Verdict.FINISHED
    return Verdict.READY if status is not None and status.ready else Verdict.NOT_READY


def _since(facts: Facts, work: Work, verdict: Verdict) -> datetime | None:
    if verdict is Verdict.DELETING:
        return facts.pod.deletion_time
    if work.status is None:
        return facts.pod.creation_time
    return next((c.since for c in work.status.conditions if c.type == "Ready"), None)


def _sentence(facts: Facts, verdict: Verdict, causes: Sequence[Cause]) -> str:
    name = f"pod/{facts.pod.name}"
    match verdict:
        case Verdict.READY:
            return f"{name} is Ready"
        case Verdict.FINISHED:
            return f"{name} is finished: none of its containers starts again"
        case Verdict.DELETING:
            return f"{name} is being deleted"
    if not causes:
        return f"{name} is not Ready"
    place = f"container {causes[0].container}: " if causes[0].container else ""
    return f"{name} is not Ready: {place}{causes[0].reason}"


def _node(facts: Facts) -> Iterator[Cause]:
    work = facts.work or Work()
    look = work.failure if work.failure is not None and work.failure.action is None else None
    if look is not None or facts.runtime_fault:
        yield Cause(
            "RuntimeNotAnswering",
            look.message if look else facts.runtime_fault,
            "containers that run go on; the kubelet looks again and then continues",
            scope=Scope.NODE,
            since=look.since if look else None,
            next_seconds=work.next_seconds,
        )
    if facts.store_fault:
        full = "full" in facts.store_fault
        mend = "free some space on it" if full else "mend the disk or the file; it is tried again every 5 s"
        yield Cause(
            "StoreFull" if full else "StoreDegraded",
            facts.store_fault,
            f"{mend}; until then nothing new is stored, and running pods go on",
            scope=Scope.NODE,
        )
    if facts.cluster_fault:
        what = "pods that run go on; nothing new is heard of, and statuses are told when it answers again"
        yield Cause("ApiServerAway", facts.cluster_fault, what, scope=Scope.NODE)
    if facts.disk_fault:
        what = "free some space: pulling images and writing logs fail on a full disk"
        yield Cause("DiskPressure", facts.disk_fault, what, scope=Scope.NODE)
    if facts.manifest_fault:
        what = "correct the file; until then the pod is as the file said before"
        yield Cause("ManifestRefused", facts.manifest_fault, what, scope=Scope.POD)


def _pod(facts: Facts, work: Work, verdict: Verdict) -> Iterator[Cause]:
    match verdict:
        case Verdict.DELETING:
            yield _deletion(facts, work)
        case Verdict.FINISHED:
            yield from _ends(work)
        case Verdict.READY:
            yield from _healthy(facts, work)
        case Verdict.NOT_READY:
            yield from _unready(facts, work)


def _deletion(facts: Facts, work: Work) -> Cause:
    pod, observed, since = facts.pod, work.observed, facts.pod.deletion_time
    grace = pod.deletion_grace_seconds
    grace = pod.spec.termination_grace_period_seconds if grace is None else grace
    if work.failure is not None and work.failure.action is not None:
        step = _STEPS.get(type(work.failure.action), "a step")
        message = f"{step} failed {_times(work.failure.count)}: {work.failure.message}"
        return Cause(
            "DeletionFailing", message, "it is tried again", since=since, next_seconds=work.next_seconds
        )
    running = [c for c in observed.containers if c.state is RuntimeState.RUNNING] if observed else []
    if running:
        stopping = work.doing is not None and isinstance(work.doing.action, plan.StopContainer)
        begun = work.doing.since if stopping and work.doing is not None else since
        left = max(0.0, (begun + timedelta(seconds=grace) - facts.now).total_seconds()) if begun else 0.0
        names = ", ".join(c.name for c in running)
        message = f"waiting for container{'s' * (len(running) > 1)} {names} to end; the grace is {grace} s"
        what = "what still runs then is killed" if left else "the grace is over: the containers are killed"
        return Cause("Stopping", message, what, since=since, next_seconds=left or None)
    if observed is not None and observed.sandboxes:
        what = "the network and the address are given back, then the pod's files are removed"
        return Cause("RemovingSandbox", "every container has ended", what, since=since)
    return Cause("Finalizing", "nothing of it runs", "its files are removed and it is forgotten", since=since)


def _ends(work: Work) -> Iterator[Cause]:
    if work.status and work.status.reason:
        what = "nothing: the pod is not started again"
        yield Cause(work.status.reason, work.status.message, what, scope=Scope.POD)
    for container in work.status.every if work.status else ():
        state = container.state
        if state.exit_code is None:
            message, what = "it has not run", "nothing: the pod is over"
            yield Cause("NotStarted", message, what, container=container.name, scope=Scope.CONTAINER)
            continue
        good = state.exit_code == 0
        message = f"it ended with {exit_words(state.exit_code or 0, state.reason)}"
        yield Cause(
            "Completed" if good else state.reason or "Error",
            message + (f": {state.message}" if state.message else ""),
            "nothing: its restart policy does not start it again",
            container=container.name,
            scope=Scope.CONTAINER,
            since=state.finished_at,
        )


def _healthy(facts: Facts, work: Work) -> Iterator[Cause]:
    for container in _containers(facts, work):
        yield health(container)


def _unready(facts: Facts, work: Work) -> Iterator[Cause]:
    if work.observed is None:
        # A look that fails is told as the node's cause already.
        if work.failure is None:
            message = "the kubelet has not looked at it yet"
            yield Cause(
                "Queued", message, "it waits for a worker", since=facts.pod.creation_time, next_seconds=0.0
            )
        return
    sandbox = work.observed.sandbox()
    if sandbox is None or not sandbox.ready:
        blocking = _sandbox(facts, work, lost=sandbox is not None)
        if blocking is not None:
            yield blocking
            return
    elif work.failure is not None and work.failure.action is not None:
        step = _STEPS.get(type(work.failure.action), "a step")
        message = f"{step} failed {_times(work.failure.count)}: {work.failure.message}"
        since = work.failure.since
        yield Cause("SyncFailing", message, "it is tried again", since=since, next_seconds=work.next_seconds)
    if work.status is None:
        message = "it ran before this kubelet started, and has not been probed by it yet"
        what = "its status is told with the first answer of its probes, or after 8 s"
        yield Cause("Adopted", message, what, since=facts.pod.creation_time)
    first = _first(facts, work)
    if first is not None:
        yield from _uninitialized(facts, work, first)
        return
    for container in _containers(facts, work):
        yield from causes_of(container)


def _first(facts: Facts, work: Work) -> Spec | None:
    """Return the init container that is awaited."""
    observed = work.observed or ObservedPod(facts.pod.uid)
    begun = started(facts.pod, observed, work.memory)
    return awaited(facts.pod.spec, observed, begun)


def _uninitialized(facts: Facts, work: Work, first: Spec) -> Iterator[Cause]:
    """Yield why the awaited init container is not done, and that the others wait for it."""
    container = replace(
        _container(facts, work, first),
        latest=here(work.observed, first.name) if work.observed is not None else None,
    )
    running = running_init(container)
    yield from (running,) if running is not None else causes_of(container)
    for spec in facts.pod.spec.containers:
        yield waits(_container(facts, work, spec), first.name)


def _sandbox(facts: Facts, work: Work, *, lost: bool) -> Cause | None:
    """Return why there is no ready sandbox, if that holds the containers up and not they it."""
    doing, failure = work.doing, work.failure
    if failure is not None and isinstance(failure.action, plan.CreateSandbox):
        message = f"making its sandbox failed {_times(failure.count)}: {failure.message}"
        return Cause(
            "FailedCreatePodSandBox",
            message,
            "it is tried again",
            since=failure.since,
            next_seconds=work.next_seconds,
            evidence=_evidence(facts.events, "FailedCreatePodSandBox"),
        )
    if doing is not None and isinstance(doing.action, plan.CreateSandbox):
        message = f"its sandbox is being made: {doing.action.reason}"
        return Cause(
            "CreatingSandbox", message, "then images are pulled and containers started", since=doing.since
        )
    if lost and not _any_waits(facts, work):
        what = "a new one is made, and the containers start in it"
        return Cause("SandboxLost", "its sandbox is not ready any more", what, next_seconds=work.next_seconds)
    return None


def _any_waits(facts: Facts, work: Work) -> bool:
    waits = [*work.memory.crashes.values(), *(backoff for backoff, *_ in work.memory.failures.values())]
    return any(backoff.due() > facts.monotonic for backoff in waits)


def _containers(facts: Facts, work: Work) -> Iterator[Container]:
    for spec in facts.pod.spec.lasting:
        yield _container(facts, work, spec)


def _container(facts: Facts, work: Work, spec: Spec) -> Container:
    observed = work.observed or ObservedPod(facts.pod.uid)
    statuses = {c.name: c for c in work.status.every} if work.status else {}
    return Container(
        spec=spec,
        pod=facts.pod,
        latest=observed.latest(spec.name),
        status=statuses.get(spec.name),
        memory=work.memory,
        probes=tuple(r for r in facts.probes if r.container == spec.name),
        doing=work.doing,
        next_seconds=work.next_seconds,
        events=tuple(e for e in facts.events if e.container == spec.name),
        now=facts.now,
        monotonic=facts.monotonic,
    )


_STEPS: dict[type[Action], str] = {
    plan.StopContainer: "stopping a container",
    plan.RemoveContainer: "removing a container",
    plan.StopSandbox: "stopping its sandbox",
    plan.RemoveSandbox: "removing its sandbox",
    plan.CreateSandbox: "making its sandbox",
    plan.PullImage: "pulling an image",
    plan.StartContainer: "starting a container",
    plan.RunPostStart: "beginning a postStart hook",
    plan.Finalize: "forgetting it",
}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _evidence(events: Sequence[Event], reason: str) -> tuple[Event, ...]:
    return tuple(event for event in events if event.reason == reason)[-1:]
