"""Keep the kernel's rules as the services and pods ask.

Level, not edge: any number of events leads to one transaction, and whenever the
kernel may differ from what was written, everything is read and compared. Nothing is
written before every source has told all it has.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.common import failpoints
from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import TripodError
from services.common.lean import collection_put_off
from services.common.logs import get_logger
from services.common.watch import WatchHub
from services.proxy.core import conntrack, health, ruleset
from services.proxy.core.audit import Audited, audit
from services.proxy.core.compose import Composer, build
from services.proxy.core.health import Pace, no_local_endpoints
from services.proxy.core.latency import Histogram
from services.proxy.core.model import Decision, Endpoint, Protocol
from services.proxy.core.parts import Surroundings, part
from services.proxy.core.ruleset import Damage, Ruleset
from services.proxy.ports import Flows, HealthPorts, Kernel, LocalPorts, NodeAddresses, Plan, RuleMonitor

log = get_logger(__name__)
_Ports = Mapping[tuple[str, int], Sequence[Endpoint]]
_RETRY_SECONDS = 1.0
# A storm of events becomes at most one transaction in this time; a single one does not wait.
_PAUSE_SECONDS = 0.05
# The original's bounds.
_DURATION_SECONDS = tuple(0.001 * 2**power for power in range(15))
_DECIDE = failpoints.step("rules.decide")
_READ = failpoints.step("rules.read")
_WRITE = failpoints.step("rules.write")
_FLOWS = failpoints.step("flows.delete")
_LOCAL = failpoints.step("local.serve")
_REPAIR = failpoints.step("rules.repair")


@dataclass(frozen=True, slots=True)
class Arrival:
    """An endpoint that became ready and is not in the kernel yet; `record` is told when it is, and when."""

    address: str
    record: Callable[[int], None]


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
        plan: Plan,
        sources: Collection[str],
    ) -> None:
        self._kernel = kernel
        self._flows = flows
        self._local = local
        self._addresses = addresses
        self._clock = clock
        self.hub = hub
        self.plan = plan
        self.programmed: dict[str, Programmed] = {}
        self._composer = Composer()
        self._around = Surroundings()
        self._local_ports: dict[str, _Ports] = {}
        # Whether the kernel has what the composer had when it last took; else it must be read.
        self._in_step = False
        self._found: Ruleset | Damage = Damage.TABLE
        # Deciding what the kernel has, and changing it, is one act.
        self._writing = asyncio.Lock()
        self._pending: set[str] = set()
        self._waiting = set(sources)
        self._arrivals: list[Arrival] = []
        self._dirty = asyncio.Event()
        self.synced = asyncio.Event()
        self.commit_count = 0
        self.failure_count = 0
        self.durations = Histogram(_DURATION_SECONDS)
        self._queued: tuple[float, int] | None = None
        self._last_queued_ns = self._last_synced_ns = 0
        self._decided = asyncio.Event()
        self.repairs: Counter[str] = Counter()
        self.fault = ""

    def touched(self) -> None:
        """Note that the plan has news."""
        now = unix_nanoseconds(self._clock.now())
        self._last_queued_ns = now
        if self._queued is None:
            self._queued = (self._clock.monotonic(), now)
        self._dirty.set()

    def caught_up(self, source: str) -> None:
        """Note that a source has told everything that there was."""
        self._waiting.discard(source)
        self._dirty.set()

    def waits_for(self) -> Sequence[str]:
        """Return the sources that have not told everything yet."""
        return sorted(self._waiting)

    def arrive(self, arrival: Arrival) -> None:
        """Note a pod; what was there before we began and is in the kernel already is no news."""
        known = isinstance(self._found, Ruleset) and arrival.address in self._found.hairpins
        if not (self._waiting and known):
            self._arrivals.append(arrival)

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
            if not self._waiting:
                await self._sync()
                await self._clock.sleep(_PAUSE_SECONDS)

    async def _sync(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        queued, began = self._queued, self._clock.monotonic()
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
            self.failure_count += 1
            self._arrivals = arrivals + self._arrivals
            # What the kernel has now is not known: look, and try again.
            self._in_step = False
            await self._clock.sleep(_RETRY_SECONDS)
            self._dirty.set()
            return
        self._note("")
        self.fault = ""
        self._kept_up(queued, began)
        for arrival in arrivals:
            arrival.record(unix_nanoseconds(self._clock.now()))
        if self._local is not None:
            async with _LOCAL:
                await self._local.serve(_all_ports(self._local_ports.values()))
            await _LOCAL.recorded()
        self.synced.set()

    def _kept_up(self, queued: tuple[float, int] | None, began: float) -> None:
        self.durations.observe(self._clock.monotonic() - began)
        self._last_synced_ns = unix_nanoseconds(self._clock.now())
        if self._queued == queued:
            self._queued = None

    def pace(self) -> Pace:
        """Return whether rules keep up."""
        at = self._last_synced_ns
        updated = datetime.fromtimestamp(at / 1e9, UTC) if at else None
        waiting = self._clock.monotonic() - self._queued[0] if self._queued else None
        return Pace(updated, waiting)

    def gauges(self) -> Mapping[str, float]:
        """Return what is measured of the work, by the metrics' names."""
        prefix = "kubeproxy_sync_proxy_rules"
        nowhere = Counter(policy for d in self.plan.decisions.values() for policy in no_local_endpoints(d))
        return {
            f"{prefix}_last_timestamp_seconds": self._last_synced_ns / 1e9,
            f"{prefix}_last_queued_timestamp_seconds": self._last_queued_ns / 1e9,
            f"{prefix}_nftables_sync_failures_total": self.failure_count,
            **{
                f'{prefix}_no_local_endpoints_total{{traffic_policy="{policy}"}}': nowhere[policy]
                for policy in ("internal", "external")
            },
        }

    async def serve_health(self, ports: HealthPorts) -> None:
        """Keep the health check ports of services as they are decided, until cancelled."""
        while True:
            await self._decided.wait()
            self._decided.clear()
            await ports.serve(health.ports(self.plan.decisions.values()))
            await self._clock.sleep(_PAUSE_SECONDS)

    def _decide(self) -> None:
        """Decide anew for what changed, and tell the watchers."""
        changed = self.plan.decide()
        around = self.plan.surroundings(self._addresses())
        if around != self._around:
            self._around = around
            self._composer.surround(around)
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
            self._composer.put(uid, None if decision is None else part(decision, around))
        self._pending |= changed.keys()
        self._decided.set()

    def _keep_local_ports(self, uid: str, decision: Decision) -> None:
        ports = {
            (p.port.protocol.value, p.port.node_port): p.used()
            for p in decision.ports
            if p.port.node_port and p.port.protocol is not Protocol.SCTP
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
        if in_step and found == after and found.serving == after.serving:
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
            if not in_step or (isinstance(found, Ruleset) and found.sticks != after.sticks):
                # A former life may have ended between its rules and its flows; and a place that
                # keeps its clients stays as it is when its endpoints change.
                await self._flows.delete(conntrack.misled(await self._flows.udp(), self._composer.rules))
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

    async def audit(self) -> Audited:
        """Compare the kernel with what was decided."""
        async with self._writing:
            around = self.plan.surroundings(self._addresses())
            wanted = build(self.plan.decisions.values(), around)
            found, flows = await self._kernel.read(), await self._flows.udp()
        counts = {
            "rule": 0 if isinstance(found, Damage) else len(found.endpoints) + len(found.services),
            "flow": len(flows),
        }
        return Audited(audit(wanted, found, flows), counts)


def _all_ports(ports: Iterable[_Ports]) -> _Ports:
    return {key: targets for some in ports for key, targets in some.items()}
