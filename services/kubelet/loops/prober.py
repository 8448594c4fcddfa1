"""Run the probes of running containers, and tell when a verdict moves.

One task for each container and probe. The first probe goes out as soon as the
container runs (after its initial delay); until the first success of a readiness
probe the period is one second at most, so that a pod is Ready when it can be.
A container with a startup probe has no other until that has succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace

from services.common import telemetry
from services.common.clock import Clock
from services.kubelet.core import probes
from services.kubelet.core.memory import Ailment
from services.kubelet.core.model import Container, ContainerId, Pod, PodUid, Probe
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.core.probes import ProbeKind, ProbeReport
from services.kubelet.ports import EventSink, ProbeRunner, ProbeTarget

EAGER_SECONDS = 1.0
Key = tuple[ContainerId, ProbeKind]


@dataclass(frozen=True, slots=True)
class _Work:
    """One probe to run again and again."""

    pod: Pod
    container: Container
    container_id: ContainerId
    kind: ProbeKind
    probe: Probe
    address: str


class Prober:
    """Keeps the probes of all pods running. `on_change` is told the pod whose verdict moved."""

    def __init__(
        self, runner: ProbeRunner, events: EventSink, clock: Clock, on_change: Callable[[PodUid], None]
    ) -> None:
        self._runner = runner
        self._events = events
        self._clock = clock
        self._on_change = on_change
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._pods: dict[Key, PodUid] = {}
        self._verdicts: dict[Key, bool] = {}
        self._judged: set[Key] = set()
        self._reports: dict[Key, ProbeReport] = {}
        # Containers whose startup probe has succeeded.
        self._started: dict[ContainerId, PodUid] = {}
        # Containers whose postStart hook has not.
        self._held: dict[PodUid, Set[ContainerId]] = {}

    async def run(self) -> None:
        """Hold the probes' tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    def readiness(self, pod: Pod, observed: ObservedPod) -> dict[str, bool]:
        """Return the readiness verdicts of a pod's containers, by id; none is ready before its startup."""
        found: dict[str, bool] = {}
        held = self._held.get(pod.uid, frozenset())
        for container in pod.spec.lasting:
            latest = observed.latest(container.name)
            if latest is not None:
                probed = container.readiness_probe is not None
                verdict = self._verdicts.get((latest.id, ProbeKind.READINESS), False) if probed else True
                begun = latest.id not in held and self._has_started(container, latest.id)
                found[latest.id] = verdict and begun
        return found

    def hold(self, uid: PodUid, held: Set[ContainerId]) -> None:
        """Say which containers of a pod are neither probed nor ready yet, whatever their probes say."""
        self._held[uid] = held

    def judged(self, pod: Pod, observed: ObservedPod) -> bool:
        """Tell whether each running container was probed once by what makes it ready."""
        wanted = [(work.container_id, work.kind) for work in self._works(pod, observed)]
        return all(key in self._judged for key in wanted if key[1] is not ProbeKind.LIVENESS)

    def reports(self, uid: PodUid) -> tuple[ProbeReport, ...]:
        """Return how each probe of a pod stands."""
        return tuple(report for key, report in self._reports.items() if self._pods.get(key) == uid)

    def unhealthy(self, observed: ObservedPod) -> dict[ContainerId, Ailment]:
        """Return a pod's containers that are to be stopped for a probe, with the reason and the grace."""
        found = {}
        for container in observed.containers:
            for kind in (ProbeKind.LIVENESS, ProbeKind.STARTUP):
                report = self._reports.get((container.id, kind))
                if report is not None and probes.fatal(kind, report.state, report.probe):
                    why = f"its {kind.value.lower()} probe failed"
                    grace = report.probe.termination_grace_period_seconds
                    found[container.id] = Ailment(why, grace)
        return found

    def adopt(self, uid: PodUid, begun: Set[ContainerId]) -> None:
        """Take over from a run before which containers' startup probes have succeeded."""
        self._started.update(dict.fromkeys(begun, uid))

    def begun(self, uid: PodUid) -> frozenset[ContainerId]:
        """Return the containers of a pod whose startup probe has succeeded."""
        return frozenset(key for key, owner in self._started.items() if owner == uid)

    def update(self, pod: Pod, observed: ObservedPod) -> None:
        """Start the probes of containers that run, end those of others."""
        wanted = {(w.container_id, w.kind): w for w in self._works(pod, observed)}
        for key in [key for key, uid in self._pods.items() if uid == pod.uid and key not in wanted]:
            self._drop(key)
        self._keep_started(pod.uid, {container.id for container in observed.containers})
        for key, work in wanted.items():
            if key not in self._tasks and self._group is not None:
                self._pods[key] = pod.uid
                self._verdicts[key] = probes.initial(work.kind).verdict
                self._tasks[key] = self._group.create_task(self._repeat(key, work))

    def forget(self, uid: PodUid) -> None:
        """End all probes of a pod."""
        for key in [key for key, owner in self._pods.items() if owner == uid]:
            self._drop(key)
        self._held.pop(uid, None)
        self._keep_started(uid, frozenset())

    def _drop(self, key: Key) -> None:
        self._tasks.pop(key).cancel()
        self._pods.pop(key)
        self._verdicts.pop(key, None)
        self._judged.discard(key)
        self._reports.pop(key, None)

    async def _repeat(self, key: Key, work: _Work) -> None:
        target = ProbeTarget(work.pod, work.container, work.container_id, work.address)
        state = probes.initial(work.kind)
        first = self._clock.monotonic() + work.probe.initial_delay_seconds
        report = ProbeReport(work.container_id, work.container.name, work.kind, work.probe, state, due=first)
        self._reports[key] = report
        await self._clock.sleep(work.probe.initial_delay_seconds)
        while True:
            begin = self._clock.monotonic()
            self._reports[key] = report = replace(report, due=None)
            with telemetry.unrecorded():
                outcome = await self._runner.run(work.probe, target)
            if outcome is None:
                await self._clock.sleep(max(EAGER_SECONDS, work.probe.period_seconds))
                continue
            before, state = state, probes.step(state, outcome.success, work.probe)
            self._judged.add(key)
            since = report.since if state.run_count > 1 else self._clock.now()
            report = replace(report, state=state, message=outcome.message, since=since)
            self._reports[key] = report
            if not outcome.success:
                what = f"{work.kind.value} probe failed: {outcome.message}"
                self._events.emit(work.pod, "Unhealthy", what, container=work.container.name, warning=True)
            if work.kind is ProbeKind.STARTUP and state.verdict:
                self._started[work.container_id] = work.pod.uid
            over = probes.fatal(work.kind, state, work.probe)
            if over or state.verdict is not before.verdict:
                self._verdicts[key] = state.verdict
                self._on_change(work.pod.uid)
                if over or work.kind is ProbeKind.STARTUP:
                    return  # Held until the container has another id, or its other probes' turn has come.
            due = begin + _period(work, state)
            self._reports[key] = report = replace(report, due=due)
            await self._clock.sleep(due - self._clock.monotonic())

    def _has_started(self, container: Container, container_id: ContainerId) -> bool:
        return container.startup_probe is None or container_id in self._started

    def _keep_started(self, uid: PodUid, ids: Set[ContainerId]) -> None:
        """Forget that containers of a pod have started that are not there any more."""
        for key in [key for key, owner in self._started.items() if owner == uid and key not in ids]:
            del self._started[key]

    def _works(self, pod: Pod, observed: ObservedPod) -> Iterator[_Work]:
        """Yield the probes that are to run now."""
        sandbox = observed.sandbox()
        address = sandbox.addresses[0] if sandbox and sandbox.addresses else "127.0.0.1"
        held = self._held.get(pod.uid, frozenset())
        for container in pod.spec.lasting:
            latest = observed.latest(container.name)
            if latest is None or latest.state is not RuntimeState.RUNNING or latest.id in held:
                continue
            if not self._has_started(container, latest.id):
                assert container.startup_probe is not None, "it has not started"
                if pod.deletion_time is None:
                    kind, probe = ProbeKind.STARTUP, container.startup_probe
                    yield _Work(pod, container, latest.id, kind, probe, address)
                continue
            if container.readiness_probe is not None:
                kind, probe = ProbeKind.READINESS, container.readiness_probe
                yield _Work(pod, container, latest.id, kind, probe, address)
            # A pod that is told to stop is not killed for being unhealthy.
            if container.liveness_probe is not None and pod.deletion_time is None:
                kind, probe = ProbeKind.LIVENESS, container.liveness_probe
                yield _Work(pod, container, latest.id, kind, probe, address)


def _period(work: _Work, state: probes.ProbeState) -> float:
    period = float(work.probe.period_seconds)
    eager = work.kind is ProbeKind.READINESS and not state.verdict and work.probe.initial_delay_seconds == 0
    return min(period, EAGER_SECONDS) if eager and state.run_count < 30 else period
