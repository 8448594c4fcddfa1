"""Events for a Kubernetes API server: how they are written, joined, and limited. Pure.

- The same event again is a patch of its count and its last time.
- More than ten events of a pod in ten minutes that differ only in their message become one.
- An object has 25 events at once, then one each five minutes; what is beyond is dropped.

Source: client-go `tools/record/events_cache.go`; Kubernetes API reference, `Event` v1.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from services.kubelet.core.events import Event
from services.kubelet.core.model import Pod
from services.kubelet.core.render import rfc3339

COMPONENT = "kubelet"
_SIMILAR_COUNT = 10
_SIMILAR_WINDOW = timedelta(seconds=600)
_BURST = 25.0
_REFILL_SECONDS = 300.0
_REMEMBERED = 4096
# Validation of the API.
_REASON_CHARACTERS = 128
_MESSAGE_CHARACTERS = 1024
_COMBINED = "(combined from similar events): "


@dataclass(frozen=True, slots=True)
class Reference:
    """The object that an event is about. `field_path` names a part of it."""

    kind: str
    name: str
    uid: str
    namespace: str = ""
    field_path: str = ""


def field_path(container: str, pod: Pod | None) -> str:
    """Return the path of a container in its pod's spec; "" for the pod itself."""
    if not container:
        return ""
    lists = {
        "initContainers": getattr(pod.spec, "init_containers", ()) if pod else (),
        "ephemeralContainers": getattr(pod.spec, "ephemeral_containers", ()) if pod else (),
    }
    kinds = (kind for kind, found in lists.items() if any(c.name == container for c in found))
    return f"spec.{next(kinds, 'containers')}{{{container}}}"


def body(event: Event, about: Reference, *, node: str, name: str) -> dict[str, Any]:
    """Write an event as it is made."""
    involved = {
        "apiVersion": "v1",
        "kind": about.kind,
        "namespace": about.namespace,
        "name": about.name,
        "uid": about.uid,
        "fieldPath": about.field_path,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.namespace or "default"},
        "involvedObject": {key: value for key, value in involved.items() if value},
        "reason": event.reason[:_REASON_CHARACTERS],
        "message": event.message[:_MESSAGE_CHARACTERS],
        "type": "Warning" if event.warning else "Normal",
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": rfc3339(event.first_time),
        "lastTimestamp": rfc3339(event.last_time),
        "count": event.count,
    }


def again(event: Event) -> dict[str, Any]:
    """Return the patch of an event that happened again."""
    return {
        "count": event.count,
        "lastTimestamp": rfc3339(event.last_time),
        "message": event.message[:_MESSAGE_CHARACTERS],
    }


@dataclass(slots=True)
class _Similar:
    messages: set[str]
    last_time: datetime
    first_time: datetime
    count: int = 0


class Correlator:
    """Joins similar events and limits those of one object. Remembers a bounded number of objects."""

    def __init__(self) -> None:
        self._similar: OrderedDict[str, _Similar] = OrderedDict()
        self._tokens: OrderedDict[str, tuple[float, datetime]] = OrderedDict()

    def take(self, event: Event) -> Event | None:
        """Return the event to tell, which may stand for several; None for none."""
        joined = self._joined(event)
        return joined if self._allowed(event.pod_uid, event.last_time) else None

    def _joined(self, event: Event) -> Event:
        key = "\x1f".join((event.pod_uid, event.reason, event.container, str(event.warning)))
        now = event.last_time
        seen = self._similar.pop(key, None)
        if seen is None or now - seen.last_time > _SIMILAR_WINDOW:
            seen = _Similar(set(), now, now)
        self._similar[key] = seen
        if len(self._similar) > _REMEMBERED:
            self._similar.popitem(last=False)
        seen.last_time = now
        if event.message in seen.messages:
            return event
        if len(seen.messages) < _SIMILAR_COUNT:
            seen.messages.add(event.message)
            return event
        if not seen.count:
            seen.first_time = now
        seen.count += 1
        return replace(
            event, message=f"{_COMBINED}{event.message}", count=seen.count, first_time=seen.first_time
        )

    def _allowed(self, uid: str, now: datetime) -> bool:
        tokens, at = self._tokens.pop(uid, (_BURST, now))
        tokens = min(_BURST, tokens + max(0.0, (now - at).total_seconds()) / _REFILL_SECONDS)
        allowed = tokens >= 1
        self._tokens[uid] = (tokens - 1 if allowed else tokens, now)
        if len(self._tokens) > _REMEMBERED:
            self._tokens.popitem(last=False)
        return allowed

    @staticmethod
    def key(event: Event) -> str:
        """Name what is counted as one at the API."""
        message = _COMBINED if event.message.startswith(_COMBINED) else event.message
        return "\x1f".join((event.pod_uid, event.reason, event.container, message, str(event.warning)))
