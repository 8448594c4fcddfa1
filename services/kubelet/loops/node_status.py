"""Look at the node every ten seconds: the runtime, memory, disk, processes.

While it is not ready, every second: what has got well is told soon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.core.node import Disk, Look, NodeStatus, judge
from services.kubelet.ports import Runtime

log = get_logger(__name__)
PERIOD_SECONDS = 10.0
# A condition of our CRI server, on hosts without CAP_SYS_RESOURCE.
RESTRICTED = "PrivilegesRestricted"
_UNREADY_SECONDS = 1.0
Measure = Callable[[], tuple[int, Sequence[Disk], float]]


class NodeWatcher:
    """Keeps the node's status. `measure` returns available memory, disks, process share."""

    def __init__(
        self,
        status: NodeStatus,
        runtime: Runtime,
        clock: Clock,
        *,
        measure: Measure,
        faults: Callable[[], list[str]],
    ) -> None:
        self.status = status
        self._runtime = runtime
        self._clock = clock
        self._measure = measure
        self._faults = faults
        self._runtime_said: list[str] = []
        self._restriction = ""

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await self._clock.sleep(PERIOD_SECONDS if self.ready() else _UNREADY_SECONDS)

    async def look(self) -> None:
        """Look once."""
        memory, disks, processes = self._measure()
        self._runtime_said = await self._runtime_faults()
        faults = [*self._faults(), *self._runtime_said]
        before = self.ready()
        self.status = judge(self.status, Look(faults, memory, disks, processes), self._clock.now())
        if before is not self.ready():
            log.info("Changed the node's readiness", ready=self.ready(), faults=faults)

    def learn(self, info: Mapping[str, str]) -> None:
        """Complete the versions, once the runtime has answered."""
        self.status = replace(self.status, info=info)

    def ready(self) -> bool:
        """Whether the node runs pods, as of the latest look."""
        return any(c.type == "Ready" and c.holds for c in self.status.conditions)

    def fault(self) -> str | None:
        """Return why the node is not ready; None when it is."""
        ready = next((c for c in self.status.conditions if c.type == "Ready"), None)
        if ready is None:
            return "The node has not been looked at yet"
        return None if ready.holds else ready.message

    def runtime_fault(self) -> str:
        """Return what the runtime lacks, as of the latest look; empty when nothing."""
        return "; ".join(self._runtime_said)

    def restriction(self) -> str:
        """Return what the runtime says that containers may not have on this host; empty when nothing."""
        return self._restriction

    def pressure(self) -> str:
        """Return how little of the disk is free when that is too little, as of the latest look."""
        return next((c.message for c in self.status.conditions if c.type == "DiskPressure" and c.holds), "")

    async def _runtime_faults(self) -> list[str]:
        try:
            with telemetry.unrecorded():
                said = await self._runtime.status()
        except TripodError as error:
            return [f"The runtime does not answer: {error.message}"]
        self.status = replace(self.status, runtime=said.features)
        self._restriction = next((c.message for c in said.conditions if c.type == RESTRICTED and c.holds), "")
        return [f"{c.type} is false: {c.message}" for c in said.conditions if not c.holds]
