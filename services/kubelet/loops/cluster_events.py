"""Tell a Kubernetes API server what happened to its pods. A slow API costs no pod anything.

The queue is bounded: what does not fit is dropped and counted. Events are told in their order, an
event that happened again by a patch of its count. One that the API refuses is dropped: it would
refuse it again. Source: client-go `tools/record/event.go`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from services.common import telemetry
from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import Code, TripodError
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import PatchType
from services.common.logs import get_logger
from services.common.watch import Bookmark, Deleted, WatchHub
from services.kubelet.core import kube_event
from services.kubelet.core.events import Event, merged
from services.kubelet.core.kube_event import Correlator, Reference
from services.kubelet.core.kube_resources import EVENTS
from services.kubelet.core.model import Pod, PodUid
from services.kubelet.core.node_events import NodeEvent

log = get_logger(__name__)
QUEUE = 1000
_REMEMBERED = 4096
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 30.0


class EventReporter:
    """Tells the events of one node. `pod` finds a pod that is still known."""

    def __init__(
        self,
        api: KubeApi,
        events: WatchHub[Event],
        clock: Clock,
        *,
        node: str,
        pod: Callable[[PodUid], Pod | None],
    ) -> None:
        self._api = api
        self._events = events
        self._clock = clock
        self._node = node
        self._pod = pod
        self._waiting: deque[Event] = deque(maxlen=QUEUE)
        self._wake = asyncio.Event()
        self._correlator = Correlator()
        # The name of each event at the API, by what is counted as one.
        self._names: OrderedDict[str, str] = OrderedDict()
        # Bounded: what can happen to a node is a short list.
        self._of_node: dict[NodeEvent, Event] = {}
        self.dropped_count = 0
        self._told_count = 0

    async def run(self) -> None:
        """Tell until cancelled."""
        with telemetry.unrecorded():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._send_all())

    def tell_node(self, told: NodeEvent) -> None:
        """Tell something that happened to the node itself."""
        now, name = self._clock.now(), self._node
        # The original has the node's name for its UID.
        event = Event("", name, name, told.reason, told.message, now, now, warning=told.warning)
        event = merged(self._of_node.get(told), event)
        self._of_node[told] = event
        self._take(event)

    async def _follow(self) -> None:
        """Hear of each event."""
        while True:
            try:
                async for change in self._events.watch():
                    if not isinstance(change, Bookmark | Deleted):
                        self._take(change.value)
            except TripodError as error:
                if error.code is not Code.ABORTED:
                    raise

    def _take(self, event: Event) -> None:
        joined = self._correlator.take(event)
        if joined is None or len(self._waiting) >= QUEUE:
            self.dropped_count += 1
            return
        self._waiting.append(joined)
        self._wake.set()

    async def _send_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._deliver(self._waiting[0])
                self._waiting.popleft()
            self._tell_drops()

    def _tell_drops(self) -> None:
        if self.dropped_count > self._told_count:
            log.warning("Dropped events that were too many", event_count=self.dropped_count)
        self._told_count = self.dropped_count

    async def _deliver(self, event: Event) -> None:
        """Send one event, until it is there or the API refuses it."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                await self._send(event)
            except TripodError as error:
                if isinstance(error, KubeApiError) and not error.passing:
                    log.warning("The API server refused an event", reason=event.reason, error=error.message)
                    return
                await self._clock.sleep(delay)
                delay = min(_LAST_RETRY_SECONDS, delay * 2)
            else:
                return

    async def _send(self, event: Event) -> None:
        key = Correlator.key(event)
        namespace = event.namespace or "default"
        name = self._names.get(key)
        if name is not None and event.count > 1:
            try:
                await self._api.patch(EVENTS, namespace, name, kube_event.again(event), kind=PatchType.MERGE)
            except KubeApiError as error:
                if not error.absent:
                    raise
            else:
                return
        name = f"{event.pod_name}.{unix_nanoseconds(self._clock.now()):x}"
        body = kube_event.body(event, self._about(event), node=self._node, name=name)
        await self._api.create(EVENTS, namespace, body)
        self._names[key] = name
        if len(self._names) > _REMEMBERED:
            self._names.popitem(last=False)

    def _about(self, event: Event) -> Reference:
        if not event.namespace:
            return Reference("Node", self._node, event.pod_uid)
        pod = self._pod(PodUid(event.pod_uid))
        path = kube_event.field_path(event.container, pod)
        return Reference("Pod", event.pod_name, event.pod_uid, event.namespace, path)
