"""Keep the kernel's rules as the services and pods ask.

Level, not edge: any number of events leads to one look at everything. Nothing is
written before both watches have told all they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from services.common import failpoints, telemetry, telemetry_names
from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.common.watch import WatchHub
from services.proxy.core import conntrack, endpoints, ruleset
from services.proxy.core.audit import Finding, audit
from services.proxy.core.model import Decision, Endpoint, Pod, Service
from services.proxy.core.ruleset import Ruleset
from services.proxy.ports import (
    CaughtUp,
    Flows,
    Kernel,
    LocalPorts,
    NodeAddresses,
    PodChanged,
    RuleMonitor,
    ServiceChanged,
    StartedOver,
)

log = get_logger(__name__)
_RETRY_SECONDS = 1.0
_SERVICE = failpoints.step("service.receive")
_POD = failpoints.step("endpoint.receive")
_DECIDE = failpoints.step("rules.decide")
_READ = failpoints.step("rules.read")
_WRITE = failpoints.step("rules.write")
_FLOWS = failpoints.step("flows.delete")
_LOCAL = failpoints.step("local.serve")
_REPAIR = failpoints.step("rules.repair")


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A pod that became ready and is not in the kernel yet."""

    pod: Pod
    traceparent: str
    received_ns: int


@dataclass(slots=True)
class Programmed:
    """What the kernel has of one service."""

    decided_revision: int = 0
    programmed_revision: int = 0
    time_ns: int = 0
    error: str = ""


class ServiceSync:
    """The proxy's one loop of work."""

    def __init__(
        self,
        *,
        kernel: Kernel,
        flows: Flows,
        local: LocalPorts | None,
        addresses: NodeAddresses,
        clock: Clock,
        hub: WatchHub[Decision],
    ) -> None:
        self._kernel = kernel
        self._flows = flows
        self._local = local
        self._addresses = addresses
        self._clock = clock
        self.hub = hub
        self.services: dict[str, Service] = {}
        self.pods: dict[str, Pod] = {}
        self.programmed: dict[str, Programmed] = {}
        self.decisions: dict[str, Decision] = {}
        self._present: Ruleset | None = None
        self._caught_up = {"services": False, "pods": False}
        self._fresh: dict[str, set[str]] = {}
        self._arrivals: list[_Arrival] = []
        self._dirty = asyncio.Event()
        self.synced = asyncio.Event()
        self.commit_count = 0
        self.repair_count = 0

    async def follow_services(self, events: AsyncIterator[ServiceChanged | StartedOver | CaughtUp]) -> None:
        """Take services as they are told."""
        async for event in events:
            if isinstance(event, ServiceChanged):
                with _SERVICE:
                    _put(self.services, event.uid, event.service)
                    self._told("services", event.uid)
                _SERVICE.recorded_in_thread()
            else:
                self._turn("services", event, self.services)
            self._dirty.set()

    async def follow_pods(self, events: AsyncIterator[PodChanged | StartedOver | CaughtUp]) -> None:
        """Take pods as they are told; note those that become ready."""
        async for event in events:
            if isinstance(event, PodChanged):
                before = self.pods.get(event.uid)
                with _POD:
                    _put(self.pods, event.uid, event.pod)
                    self._told("pods", event.uid)
                _POD.recorded_in_thread()
                if event.pod and event.pod.ready and not (before and before.ready):
                    self._arrive(event.pod, event.traceparent)
            else:
                self._turn("pods", event, self.pods)
            self._dirty.set()

    def _arrive(self, pod: Pod, traceparent: str) -> None:
        """Note a pod; one that is ready in a snapshot and in the kernel already is no news."""
        known = self._present is not None and pod.address in self._present.hairpins
        if self._caught_up["pods"] or not known:
            self._arrivals.append(_Arrival(pod, traceparent, unix_nanoseconds(self._clock.now())))

    def _told(self, stream: str, uid: str) -> None:
        if stream in self._fresh:
            self._fresh[stream].add(uid)

    def _turn(
        self, stream: str, event: StartedOver | CaughtUp | object, values: dict[str, Service] | dict[str, Pod]
    ) -> None:
        """At a snapshot's end, forget what it did not tell."""
        if isinstance(event, StartedOver):
            self._fresh[stream] = set()
        elif isinstance(event, CaughtUp):
            told = self._fresh.pop(stream, None)
            for uid in [uid for uid in values if told is not None and uid not in told]:
                del values[uid]
            self._caught_up[stream] = True

    async def run(self) -> None:
        """Work until cancelled."""
        async with _READ:
            self._present = await self._kernel.read()
        await _READ.recorded()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if all(self._caught_up.values()):
                await self._sync()

    async def _sync(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        with _DECIDE:
            decisions = [endpoints.decide(service, self.pods.values()) for service in self.services.values()]
            self._tell(decisions)
        _DECIDE.recorded_in_thread()
        try:
            await self._program(ruleset.build(decisions, self._addresses()))
        except TripodError as error:
            log.error("Could not program the kernel", reason=error.reason, error=error.message)
            self._note(decisions, error.message)
            self._arrivals = arrivals + self._arrivals
            # What the kernel has now is not known: look, and try again.
            self._present = None
            await self._clock.sleep(_RETRY_SECONDS)
            self._dirty.set()
            return
        self._note(decisions, "")
        for arrival in arrivals:
            self._record(arrival, decisions)
        if self._local is not None:
            async with _LOCAL:
                await self._local.serve(_local_ports(decisions))
            await _LOCAL.recorded()
        self.synced.set()

    async def _program(self, wanted: Ruleset) -> None:
        if self._present is None:
            self._present = await self._kernel.read()
        present = self._present
        if present == wanted:
            return
        async with _WRITE:
            if present is None:
                await self._kernel.rewrite(wanted)
            else:
                await self._kernel.change(present, wanted)
        self._present = wanted
        self.commit_count += 1
        await _WRITE.recorded()
        async with _FLOWS:
            await self._flows.delete(conntrack.stale(present or Ruleset(), wanted))
        await _FLOWS.recorded()
        log.info("Programmed the kernel", services=len(wanted.services), endpoints=len(wanted.endpoints))

    def _tell(self, decisions: Sequence[Decision]) -> None:
        """Tell the watchers what is decided now."""
        current = {decision.service.uid: decision for decision in decisions}
        for uid in self.decisions.keys() - current.keys():
            self.hub.delete(uid)
            self.programmed.pop(uid, None)
        for uid, decision in current.items():
            if self.decisions.get(uid) != decision:
                self.hub.upsert(uid, decision)
        self.decisions = current

    def _note(self, decisions: Sequence[Decision], error: str) -> None:
        now = unix_nanoseconds(self._clock.now())
        for decision in decisions:
            noted = self.programmed.setdefault(decision.service.uid, Programmed())
            noted.decided_revision, noted.error = decision.service.revision, error
            if not error:
                noted.programmed_revision, noted.time_ns = decision.service.revision, now

    def _record(self, arrival: _Arrival, decisions: Sequence[Decision]) -> None:
        """End the trace of a pod's start: its endpoints are in the kernel."""
        behind = [d for d in decisions if endpoints.selects(d.service, arrival.pod)]
        if not arrival.traceparent:
            return
        telemetry.record_span(
            telemetry_names.ENDPOINTS_PROGRAM,
            parent=arrival.traceparent,
            start_time_ns=arrival.received_ns,
            end_time_ns=unix_nanoseconds(self._clock.now()),
            attributes={
                "k8s.pod.name": arrival.pod.name,
                "k8s.namespace.name": arrival.pod.namespace,
                "tripod.service.count": len(behind),
                "tripod.services": ", ".join(sorted(d.service.name for d in behind)),
            },
        )

    async def watch_drift(self, seconds: float) -> None:
        """Compare the kernel with what was programmed, again and again; repair what differs."""
        while True:
            await self._clock.sleep(seconds)
            if self._present is None or not self.synced.is_set():
                continue
            try:
                await self.repair()
            except TripodError as error:
                log.error("Could not look at the kernel", reason=error.reason, error=error.message)
            self._dirty.set()

    async def follow_changes(self, monitor: RuleMonitor) -> None:
        """Look at the kernel as soon as somebody else has changed our rules; repair what differs."""
        async for _ in monitor.foreign_changes():
            if self.synced.is_set():
                try:
                    await self.repair()
                except TripodError as error:
                    log.error("Could not repair the rules", reason=error.reason, error=error.message)
                    self._present = None
                    self._dirty.set()

    async def repair(self) -> bool:
        """Put back what others changed, and forget flows that began meanwhile. Tells whether it did."""
        wanted = self._present
        found = await self._kernel.read()
        if wanted is None or found == wanted or self._present is not wanted:
            return False
        log.warning("Repaired rules that others changed", missing=found is None)
        async with _REPAIR:
            await self._kernel.rewrite(wanted)
        self.repair_count += 1
        await self._flows.delete(conntrack.untranslated(wanted))
        await _REPAIR.recorded()
        return True

    async def audit(self) -> tuple[Sequence[Finding], Mapping[str, int], int]:
        """Compare the kernel with what was decided; returns differences, counts, and repairs until now."""
        decisions = list(self.decisions.values())
        wanted = ruleset.build(decisions, self._addresses())
        found, flows = await self._kernel.read(), await self._flows.udp()
        counts = {
            "rule": len(found.endpoints) + len(found.services) if found is not None else 0,
            "flow": len(flows),
        }
        return audit(wanted, found, flows), counts, self.repair_count


def _put(values: dict[str, Service] | dict[str, Pod], uid: str, value: Service | Pod | None) -> None:
    if value is None:
        values.pop(uid, None)
    else:
        values[uid] = value  # type: ignore[assignment]  # each caller keeps to one kind


def _local_ports(decisions: Sequence[Decision]) -> Mapping[tuple[str, int], Sequence[Endpoint]]:
    return {
        (port.port.protocol.value, port.port.node_port): port.used()
        for decision in decisions
        for port in decision.ports
        if port.port.node_port
    }
