"""Wake workers when something moves at the runtime: its events at once, a relist as the net.

Source: the kubelet's evented and generic PLEG. The relist compares what was listed
with what was listed before, and wakes the pods that differ. A runtime that has no
events (containerd 1.6) is listed as often as the generic PLEG does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.common.logs import get_logger
from services.kubelet.core.measures import Gauge, Histogram, Measure
from services.kubelet.core.model import PodUid
from services.kubelet.core.observed import ObservedPod
from services.kubelet.ports import Runtime

log = get_logger(__name__)
RELIST_SECONDS = 10.0
EVENTLESS_RELIST_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_EVENTLESS_RETRY_SECONDS = 60.0


class RelistMeasures:
    """How long listings took, and how far they were apart."""

    def __init__(self) -> None:
        self._seconds = Histogram("kubelet_pleg_relist_duration_seconds", "How long listings took.")
        self._apart = Histogram("kubelet_pleg_relist_interval_seconds", "Time between listings.")
        self._last = Gauge("kubelet_pleg_last_seen_seconds", "When the runtime was last listed.")

    def all(self) -> tuple[Measure, ...]:
        """Return what was measured."""
        return self._seconds, self._apart, self._last

    def listed(self, begin: float, before: float | None, clock: Clock) -> None:
        """Note a listing that has just ended; `before` is when the one before ended."""
        end = clock.monotonic()
        self._seconds.observe(end - begin)
        self._last.set(clock.now().timestamp())
        if before is not None:
            self._apart.observe(end - before)


class RuntimeWatcher:
    """Follows one runtime."""

    def __init__(self, runtime: Runtime, clock: Clock, wake: Callable[[PodUid], None]) -> None:
        self._runtime = runtime
        self._clock = clock
        self._wake = wake
        self._before: Mapping[PodUid, ObservedPod] = {}
        self._has_events = True
        self.relist_time: float | None = None
        self.measures = RelistMeasures()

    async def follow(self) -> None:
        """Wake on the runtime's events, for ever; the stream is opened again when it breaks."""
        while True:
            try:
                async for uid in self._runtime.changes():
                    self._has_events = True
                    self._wake(uid)
            except TripodError as error:
                self._lost(error)
            await self._clock.sleep(_RETRY_SECONDS if self._has_events else _EVENTLESS_RETRY_SECONDS)

    def _lost(self, error: TripodError) -> None:
        if error.code is not Code.UNIMPLEMENTED:
            log.warning("Lost the runtime's events", reason=error.reason, error=error.message)
        elif self._has_events:
            self._has_events = False
            log.info("The runtime has no events", relist_seconds=EVENTLESS_RELIST_SECONDS)

    async def relist(self) -> None:
        """Wake on differences between listings, for ever."""
        while True:
            begin = self._clock.monotonic()
            try:
                with telemetry.unrecorded():
                    self.compare(await self._runtime.list_pods())
                self.measures.listed(begin, self.relist_time, self._clock)
                self.relist_time = self._clock.monotonic()
            except TripodError as error:
                log.warning("Could not list the runtime's pods", reason=error.reason, error=error.message)
            await self._clock.sleep(RELIST_SECONDS if self._has_events else EVENTLESS_RELIST_SECONDS)

    def compare(self, now: Mapping[PodUid, ObservedPod]) -> None:
        """Wake the pods that differ from the listing before."""
        for uid in {*now, *self._before}:
            if now.get(uid) != self._before.get(uid):
                self._wake(uid)
        self._before = now

    def listing(self) -> Mapping[PodUid, ObservedPod]:
        """Return the latest listing."""
        return self._before

    def fault(self) -> str | None:
        """Return why the runtime cannot be trusted now; None when it can."""
        if self.relist_time is None:
            return "The runtime has not been listed yet"
        age = self._clock.monotonic() - self.relist_time
        return f"The runtime was last listed {age:.0f} s ago" if age > 3 * RELIST_SECONDS else None
