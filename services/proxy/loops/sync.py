"""Keep the kernel's rules as the services and pods ask.

Level, not edge: any number of events leads to one transaction, and whenever the
kernel may differ from what was written, everything is read and compared. Nothing is
written before both watches have told all they have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common import failpoints, telemetry, telemetry_names
from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import TripodError
from services.common.lean import collection_put_off
from services.common.logs import get_logger
from services.common.watch import WatchHub
from services.proxy.core import conntrack, ruleset
from services.proxy.core.audit import Finding, audit
from services.proxy.core.compose import Composer, build
from services.proxy.core.model import Decision, Endpoint, Pod
from services.proxy.core.planner import Planner
from services.proxy.core.ruleset import Damage, Ruleset
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
_Ports = Mapping[tuple[str, int], Sequence[Endpoint]]
_RETRY_SECONDS = 1.0
# A storm of events becomes at most one transaction in this time; a single one does not wait.
_PAUSE_SECONDS = 0.05
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
        self.plan = Planner()
        self.programmed: dict[str, Programmed] = {}
        self._composer = Composer()
        self._node_addresses: Sequence[str] = ()
        self._local_ports: dict[str, _Ports] = {}
        # Whether the kernel has what the composer had when it last took; else it must be read.
        self._in_step = False
        self._found: Ruleset | Damage = Damage.TABLE
        # Deciding what the kernel has, and changing it, is one act.
        self._writing = asyncio.Lock()
        self._pending: set[str] = set()
        self._caught_up = {"services": False, "pods": False}
        self._fresh: dict[str, set[str]] = {}
        self._arrivals: list[_Arrival] = []
        self._dirty = asyncio.Event()
        self.synced = asyncio.Event()
        self.commit_count = 0
        self.repairs: Counter[str] = Counter()
        self.fault = ""

    async def follow_services(self, events: AsyncIterator[ServiceChanged | StartedOver | CaughtUp]) -> None:
        """Take services as they are told."""
        async for event in events:
            if isinstance(event, ServiceChanged):
                with _SERVICE:
                    self.plan.put_service(event.uid, event.service)
                    self._told("services", event.uid)
                _SERVICE.recorded_in_thread()
            else:
                self._turn("services", event, self.plan.retain_services)
            self._dirty.set()

    async def follow_pods(self, events: AsyncIterator[PodChanged | StartedOver | CaughtUp]) -> None:
        """Take pods as they are told; note those that become ready."""
        async for event in events:
            if isinstance(event, PodChanged):
                before = self.plan.pods.get(event.uid)
                with _POD:
                    self.plan.put_pod(event.uid, event.pod)
                    self._told("pods", event.uid)
                _POD.recorded_in_thread()
                if event.pod and event.pod.ready and not (before and before.ready):
                    self._arrive(event.pod, event.traceparent)
            else:
                self._turn("pods", event, self.plan.retain_pods)
            self._dirty.set()

    def _arrive(self, pod: Pod, traceparent: str) -> None:
        """Note a pod; one that is ready in a snapshot and in the kernel already is no news."""
        known = isinstance(self._found, Ruleset) and pod.address in self._found.hairpins
        if traceparent and (self._caught_up["pods"] or not known):
            self._arrivals.append(_Arrival(pod, traceparent, unix_nanoseconds(self._clock.now())))

    def _told(self, stream: str, uid: str) -> None:
        if stream in self._fresh:
            self._fresh[stream].add(uid)

    def _turn(
        self, stream: str, event: StartedOver | CaughtUp | object, retain: Callable[[set[str]], None]
    ) -> None:
        """At a snapshot's end, forget what it did not tell."""
        if isinstance(event, StartedOver):
            self._fresh[stream] = set()
        elif isinstance(event, CaughtUp):
            told = self._fresh.pop(stream, None)
            if told is not None:
                retain(told)
            self._caught_up[stream] = True

    async def run(self) -> None:
        """Work until cancelled."""
        async with _READ:
            self._found = await self._kernel.read()
        await _READ.recorded()
        # A run that ended in the middle may have taken a change and not done it.
        self._dirty.set()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if all(self._caught_up.values()):
                await self._sync()
                await self._clock.sleep(_PAUSE_SECONDS)

    async def _sync(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        try:
            async with self._writing:
                with _DECIDE, collection_put_off():
                    self._decide()
                _DECIDE.recorded_in_thread()
                await self._program()
        except TripodError as error:
            log.error("Could not program the kernel", reason=error.reason, error=error.message)
            self._note(error.message)
            self.fault = error.message
            self._arrivals = arrivals + self._arrivals
            # What the kernel has now is not known: look, and try again.
            self._in_step = False
            await self._clock.sleep(_RETRY_SECONDS)
            self._dirty.set()
            return
        self._note("")
        self.fault = ""
        for arrival in arrivals:
            self._record(arrival)
        if self._local is not None:
            async with _LOCAL:
                await self._local.serve(_all_ports(self._local_ports.values()))
            await _LOCAL.recorded()
        self.synced.set()

    def _decide(self) -> None:
        """Decide anew for what changed, and tell the watchers."""
        changed = self.plan.decide()
        addresses = self._addresses()
        if addresses != self._node_addresses:
            self._node_addresses = addresses
            changed = {**self.plan.decisions, **changed}
        for uid, decision in changed.items():
            if decision is None:
                self.hub.delete(uid)
                self.programmed.pop(uid, None)
                self._local_ports.pop(uid, None)
            else:
                if self.hub.get(uid) != decision:
                    self.hub.upsert(uid, decision)
                self._keep_local_ports(uid, decision)
            self._composer.put(uid, None if decision is None else ruleset.part(decision, addresses))
        self._pending |= changed.keys()

    def _keep_local_ports(self, uid: str, decision: Decision) -> None:
        ports = {
            (p.port.protocol.value, p.port.node_port): p.used() for p in decision.ports if p.port.node_port
        }
        if ports:
            self._local_ports[uid] = ports
        else:
            self._local_ports.pop(uid, None)

    async def _program(self) -> None:
        """Bring the kernel in step: by what changed since the last time, or after a look at all it has."""
        in_step, self._in_step = self._in_step, False
        found: Ruleset | Damage
        if in_step:
            found, after = self._composer.take()
        else:
            self._composer.settle()
            found, after = await self._kernel.read(), self._composer.rules
        if in_step and found == after:
            self._in_step = True
            return
        if found != after:
            async with _WRITE:
                await self._write(found, after)
            self.commit_count += 1
            await _WRITE.recorded()
        async with _FLOWS:
            await self._flows.delete(
                conntrack.stale(Ruleset() if isinstance(found, Damage) else found, after)
            )
            if not in_step:
                # A former life may have ended between its rules and its flows.
                await self._flows.delete(conntrack.misled(await self._flows.udp(), after))
        await _FLOWS.recorded()
        self._in_step = True
        rules = self._composer.rules
        log.info("Programmed the kernel", services=len(rules.services), endpoints=len(rules.endpoints))

    async def _write(self, found: Ruleset | Damage, wanted: Ruleset) -> None:
        if isinstance(found, Damage):
            await self._kernel.rewrite(wanted)
        else:
            await self._kernel.change(ruleset.difference(found, wanted))

    def _note(self, error: str) -> None:
        """Note how the programming of what changed went."""
        now = unix_nanoseconds(self._clock.now())
        for uid in self._pending & self.plan.decisions.keys():
            revision = self.plan.decisions[uid].service.revision
            noted = self.programmed.setdefault(uid, Programmed())
            noted.decided_revision, noted.error = revision, error
            if not error:
                noted.programmed_revision, noted.time_ns = revision, now
        if not error:
            self._pending.clear()

    def _record(self, arrival: _Arrival) -> None:
        """End the trace of a pod's start: its endpoints are in the kernel."""
        behind = list(self.plan.behind(arrival.pod))
        telemetry.record_span(
            telemetry_names.ENDPOINTS_PROGRAM,
            parent=arrival.traceparent,
            start_time_ns=arrival.received_ns,
            end_time_ns=unix_nanoseconds(self._clock.now()),
            attributes={
                "k8s.pod.name": arrival.pod.name,
                "k8s.namespace.name": arrival.pod.namespace,
                "tripod.service.count": len(behind),
                "tripod.services": ", ".join(sorted(service.name for service in behind)),
            },
        )

    async def watch_drift(self, seconds: float) -> None:
        """Compare the kernel with what was programmed, again and again; repair what differs."""
        while True:
            await self._clock.sleep(seconds)
            await self._look()
            if self._in_step:
                await self._flows.delete(conntrack.misled(await self._flows.udp(), self._composer.rules))
            self._dirty.set()

    async def follow_changes(self, monitor: RuleMonitor) -> None:
        """Look at the kernel as soon as somebody else has changed our rules; repair what differs."""
        async for _ in monitor.foreign_changes():
            await self._look()

    async def _look(self) -> None:
        if not self.synced.is_set():
            return
        try:
            await self.repair()
        except TripodError as error:
            log.error("Could not repair the rules", reason=error.reason, error=error.message)
            self.fault = error.message
            self._in_step = False
            self._dirty.set()

    async def repair(self) -> bool:
        """Put back what others changed, and forget flows that began meanwhile. Tells whether it did."""
        async with self._writing:
            if not self._in_step:
                return False
            wanted, found = self._composer.rules, await self._kernel.read()
            if found == wanted:
                return False
            kind = found.value if isinstance(found, Damage) else Damage.ELEMENTS.value
            log.warning("Repaired rules that others changed", kind=kind)
            async with _REPAIR:
                await self._write(found, wanted)
            self.repairs[kind] += 1
            await self._flows.delete(conntrack.misled(await self._flows.udp(), wanted))
            await self._flows.delete(conntrack.untranslated(wanted))
            await _REPAIR.recorded()
            return True

    async def audit(self) -> tuple[Sequence[Finding], Mapping[str, int], int]:
        """Compare the kernel with what was decided; returns differences, counts, and repairs until now."""
        async with self._writing:
            wanted = build(self.plan.decisions.values(), self._addresses())
            found, flows = await self._kernel.read(), await self._flows.udp()
        counts = {
            "rule": 0 if isinstance(found, Damage) else len(found.endpoints) + len(found.services),
            "flow": len(flows),
        }
        return audit(wanted, found, flows), counts, self.repairs.total()


def _all_ports(ports: Iterable[_Ports]) -> _Ports:
    return {key: targets for some in ports for key, targets in some.items()}
