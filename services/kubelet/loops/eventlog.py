"""The node's memory of events: bounded, counted, watched. Implements `EventSink`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from opentelemetry import trace

from services.common.clock import Clock
from services.common.logs import get_logger
from services.common.watch import WatchHub
from services.kubelet.core.events import Event, merged
from services.kubelet.core.model import Pod

log = get_logger(__name__)
LIMIT = 2000


class EventLog:
    """The latest events of all pods."""

    def __init__(self, clock: Clock, run_id: str) -> None:
        self._clock = clock
        self._order: OrderedDict[str, None] = OrderedDict()
        self.hub: WatchHub[Event] = WatchHub(run_id)

    def emit(
        self, pod: Pod, reason: str, message: str, *, container: str = "", warning: bool = False
    ) -> None:
        """Note an event: in memory, on the span that is open, and as a log line."""
        now = self._clock.now()
        event = Event(pod.namespace, pod.name, pod.uid, reason, message, now, now, container, warning)
        event = merged(self.hub.get(event.key), event)
        self._order.pop(event.key, None)
        self._order[event.key] = None
        self.hub.upsert(event.key, event)
        if len(self._order) > LIMIT:
            self.hub.delete(self._order.popitem(last=False)[0])
        trace.get_current_span().add_event(reason, {"message": message, "k8s.container.name": container})
        emit = log.warning if warning else log.info
        emit(
            "Noted event",
            reason=reason,
            message=message,
            pod=f"{pod.namespace}/{pod.name}",
            container=container,
        )

    def events(self) -> Iterator[Event]:
        """Yield the remembered events, the oldest first."""
        for key in list(self._order):
            event = self.hub.get(key)
            if event is not None:
                yield event
