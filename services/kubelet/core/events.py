"""What happened to pods, counted and bounded. Pure.

Source: Kubernetes `Event`: the same reason and message within an hour is one event
whose count grows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

_WINDOW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a pod."""

    namespace: str
    pod_name: str
    pod_uid: str
    reason: str
    message: str
    first_time: datetime
    last_time: datetime
    container: str = ""
    warning: bool = False
    count: int = 1

    @property
    def key(self) -> str:
        """Name what is counted as one."""
        return "\x1f".join((self.pod_uid, self.container, self.reason, self.message, str(self.warning)))


def merged(previous: Event | None, event: Event) -> Event:
    """Count an event onto the same one before it, if that is young enough."""
    if previous is None or event.last_time - previous.last_time > _WINDOW:
        return event
    return replace(event, first_time=previous.first_time, count=previous.count + 1)
