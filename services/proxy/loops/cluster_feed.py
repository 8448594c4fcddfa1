"""Take services, slices and nodes as an API server tells them: the source of a cluster's node.

The local kubelet tells of its pods meanwhile, for their traces alone: an endpoint of a pod
whose trace it told ends that trace here; the pod of another node has a trace whose id follows
from its UID, which is joined. Rules never wait for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from services.common import failpoints, telemetry, telemetry_names
from services.common.clock import Clock, unix_nanoseconds
from services.common.logs import get_logger
from services.common.replica import Change
from services.proxy.core.cluster import ClusterPlan, Node
from services.proxy.core.model import Service
from services.proxy.core.slices import Slice, SliceEndpoint
from services.proxy.loops.sync import Arrival, ServiceSync
from services.proxy.ports import CaughtUp, PodChanged, StartedOver

log = get_logger(__name__)
SERVICES, SLICES, NODES = "services", "endpoint slices", "nodes"
Attributes = dict[str, str | int | float | bool]
# The time of a pod's change is told in whole seconds.
_TRIGGER_PRECISION_NS = 10**9
# How many pods of other nodes are remembered to have been used once.
_REMEMBERED = 8192
SOURCES = (SERVICES, SLICES, NODES)
_SERVICE = failpoints.step("cluster.service.receive")
_SLICE = failpoints.step("cluster.slice.receive")
_NODE = failpoints.step("cluster.node.receive")


class ClusterFeed:
    """Feeds the plan of one `ServiceSync`. `nodes_changed` is told when a node has.

    `programmed` is told how many seconds passed from an endpoint's change to the kernel's.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        sync: ServiceSync,
        clock: Clock,
        *,
        nodes_changed: Callable[[], None],
        programmed: Callable[[float], None],
    ) -> None:
        self._plan = plan
        self._sync = sync
        self._clock = clock
        self._nodes_changed = nodes_changed
        self._programmed = programmed
        self._traces: dict[str, str] = {}
        self._began_ns = unix_nanoseconds(clock.now())
        self._joined: dict[str, None] = {}

    def tell_services(self, changes: Sequence[Change[Service]]) -> None:
        """Take services as they are told."""
        for change in changes:
            with _SERVICE:
                self._plan.put_service(change.uid, change.after)
            _SERVICE.recorded_in_thread()
            if change.after and change.after.refusals != (change.before.refusals if change.before else ()):
                _warn(change.after)
        self._sync.touched()

    def tell_slices(self, changes: Sequence[Change[Slice]]) -> None:
        """Take slices as they are told; note endpoints that become ready."""
        for change in changes:
            of = change.after or change.before
            before = self._plan.ready(of.service) if of else {}
            with _SLICE:
                self._plan.put_slice(change.key, change.before, change.after)
            _SLICE.recorded_in_thread()
            if change.after is not None:
                after = self._plan.ready(change.after.service)
                for uid in after.keys() - before.keys():
                    self._arrive(change.after, after[uid])
        self._sync.touched()

    def tell_nodes(self, changes: Sequence[Change[Node]]) -> None:
        """Take nodes as they are told."""
        for change in changes:
            with _NODE:
                self._plan.put_node(change.key, change.after)
            _NODE.recorded_in_thread()
        self._nodes_changed()
        self._sync.touched()

    async def follow_pods(self, events: AsyncIterator[PodChanged | StartedOver | CaughtUp]) -> None:
        """Remember the traces of this node's pods as their kubelet tells them."""
        async for event in events:
            if isinstance(event, StartedOver):
                self._traces.clear()
            elif isinstance(event, PodChanged):
                if event.pod is None:
                    self._traces.pop(event.uid, None)
                elif event.traceparent:
                    self._traces[event.uid] = event.traceparent

    def _arrive(self, of: Slice, endpoint: SliceEndpoint) -> None:
        now = unix_nanoseconds(self._clock.now())
        record = partial(self._record, of, endpoint, now, self._is_news(of))
        self._sync.arrive(Arrival(endpoint.address, record))

    def _is_news(self, of: Slice) -> bool:
        """Tell whether what a slice tells is of our time; nobody waited for what was so before.

        A slice does not say when, if the pod became ready in the second in which it was made.
        """
        if of.trigger_ns:
            return of.trigger_ns >= self._began_ns - _TRIGGER_PRECISION_NS
        return self._sync.synced.is_set()

    def _record(
        self, of: Slice, endpoint: SliceEndpoint, received_ns: int, news: bool, programmed_ns: int
    ) -> None:
        """End the trace of a pod's start: its endpoint is in this node's kernel."""
        if news and of.trigger_ns:
            self._programmed(max(0, programmed_ns - of.trigger_ns) / 1e9)
        namespace, _, name = of.service.partition("/")
        attributes: Attributes = {
            "k8s.pod.name": endpoint.pod_name,
            "k8s.namespace.name": namespace,
            "tripod.service.count": len(list(self._plan.behind(of.service))),
            "tripod.services": name,
        }
        traceparent = self._traces.get(endpoint.pod_uid)
        if traceparent is not None:
            telemetry.record_span(
                telemetry_names.ENDPOINTS_PROGRAM,
                parent=traceparent,
                start_time_ns=received_ns,
                end_time_ns=programmed_ns,
                attributes=attributes,
            )
        elif news and endpoint.pod_uid not in self._joined:
            self._join(endpoint.pod_uid, attributes, received_ns, programmed_ns)

    def _join(self, pod_uid: str, attributes: Attributes, received_ns: int, programmed_ns: int) -> None:
        """Record the first use of another node's pod in the trace of its start, whose id is known."""
        self._joined[pod_uid] = None
        while len(self._joined) > _REMEMBERED:
            del self._joined[next(iter(self._joined))]
        trace_id = telemetry.episode_trace_id(pod_uid, telemetry_names.POD_START, 0)
        span = telemetry.start_episode(
            telemetry_names.ENDPOINTS_PROGRAM,
            trace_id=trace_id,
            attributes=attributes,
            start_time_ns=received_ns,
        )
        span.end(end_time=max(received_ns, programmed_ns))


def _warn(service: Service) -> None:
    for refusal in service.refusals:
        log.warning(
            "A service asks for what it does not get",
            namespace=service.namespace,
            service=service.name,
            field=refusal.path,
            why=refusal.why,
        )
