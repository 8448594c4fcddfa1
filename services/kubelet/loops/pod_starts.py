"""How long pods take from when the kubelet first saw them until all their containers have started.

Source: kubernetes pkg/kubelet/metrics/metrics.go `pod_start_duration_seconds`.
"""

from __future__ import annotations

from typing import Final

from services.common.clock import Clock
from services.common.watch import Bookmark, Deleted, WatchHub
from services.kubelet.core.measures import Histogram
from services.kubelet.core.status import PodPhase, PodStatus, StatePhase

_BUCKETS: Final = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200)


class PodStarts:
    """Follows statuses. A pod that an earlier run saw first does not count."""

    def __init__(self, statuses: WatchHub[PodStatus], clock: Clock) -> None:
        self._statuses = statuses
        self._clock = clock
        self._since = clock.now()
        self._started: set[str] = set()
        self.measure = Histogram(
            "kubelet_pod_start_duration_seconds",
            "From when a pod was first seen until its containers had started.",
            buckets=_BUCKETS,
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        async for change in self._statuses.watch():
            if isinstance(change, Deleted):
                self._started.discard(change.key)
            elif not isinstance(change, Bookmark):
                self._look(change.value)

    def _look(self, status: PodStatus) -> None:
        if status.uid in self._started or status.phase is not PodPhase.RUNNING:
            return
        if any(c.state.phase is StatePhase.WAITING for c in status.containers):
            return
        self._started.add(status.uid)
        if status.start_time is not None and status.start_time >= self._since:
            self.measure.observe((self._clock.now() - status.start_time).total_seconds())
