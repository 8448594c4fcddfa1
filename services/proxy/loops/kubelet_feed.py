"""Take services and pods as a kubelet tells them: the source of a node that is alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from services.common import failpoints, telemetry, telemetry_names
from services.common.clock import Clock, unix_nanoseconds
from services.proxy.core.model import Pod
from services.proxy.core.planner import Planner
from services.proxy.loops.sync import Arrival, ServiceSync
from services.proxy.ports import CaughtUp, PodChanged, ServiceChanged, StartedOver

SERVICES, PODS = "services", "pods"
SOURCES = (SERVICES, PODS)
_SERVICE = failpoints.step("service.receive")
_POD = failpoints.step("endpoint.receive")


class KubeletFeed:
    """Feeds the plan of one `ServiceSync`."""

    def __init__(self, plan: Planner, sync: ServiceSync, clock: Clock) -> None:
        self._plan = plan
        self._sync = sync
        self._clock = clock
        self._fresh: dict[str, set[str]] = {}

    async def follow_services(self, events: AsyncIterator[ServiceChanged | StartedOver | CaughtUp]) -> None:
        """Take services as they are told."""
        async for event in events:
            if isinstance(event, ServiceChanged):
                with _SERVICE:
                    self._plan.put_service(event.uid, event.service)
                    self._told(SERVICES, event.uid)
                _SERVICE.recorded_in_thread()
                self._sync.touched()
            else:
                self._turn(SERVICES, event, self._plan.retain_services)

    async def follow_pods(self, events: AsyncIterator[PodChanged | StartedOver | CaughtUp]) -> None:
        """Take pods as they are told; note those that become ready."""
        async for event in events:
            if isinstance(event, PodChanged):
                before = self._plan.pods.get(event.uid)
                with _POD:
                    self._plan.put_pod(event.uid, event.pod)
                    self._told(PODS, event.uid)
                _POD.recorded_in_thread()
                if event.traceparent and event.pod and event.pod.ready and not (before and before.ready):
                    record = partial(self._record, event.pod, event.traceparent, self._now_ns())
                    self._sync.arrive(Arrival(event.pod.address, record))
                self._sync.touched()
            else:
                self._turn(PODS, event, self._plan.retain_pods)

    def _now_ns(self) -> int:
        return unix_nanoseconds(self._clock.now())

    def _told(self, source: str, uid: str) -> None:
        if source in self._fresh:
            self._fresh[source].add(uid)

    def _turn(self, source: str, event: StartedOver | CaughtUp, retain: Callable[[set[str]], None]) -> None:
        """At a snapshot's end, forget what it did not tell."""
        if isinstance(event, StartedOver):
            self._fresh[source] = set()
            return
        told = self._fresh.pop(source, None)
        if told is not None:
            retain(told)
        self._sync.caught_up(source)

    def _record(self, pod: Pod, traceparent: str, received_ns: int, programmed_ns: int) -> None:
        """End the trace of a pod's start: its endpoints are in the kernel."""
        behind = list(self._plan.behind(pod))
        telemetry.record_span(
            telemetry_names.ENDPOINTS_PROGRAM,
            parent=traceparent,
            start_time_ns=received_ns,
            end_time_ns=programmed_ns,
            attributes={
                "k8s.pod.name": pod.name,
                "k8s.namespace.name": pod.namespace,
                "tripod.service.count": len(behind),
                "tripod.services": ", ".join(sorted(service.name for service in behind)),
            },
        )
