"""What happened to containers, told once and in order, by an engine that may tell twice or not at all. Pure.

The engine's events are replayed from the last one's time after a break; it remembers 256 of them, and none
after a restart. So after each break all containers are listed, too: what the list shows and no event told
is made up for.
Source: the CRI's `ContainerEventType`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from services.kubelet.cri import naming
from services.kubelet.cri.naming import Record

_GONE_COUNT = 1024


class Stage(IntEnum):
    """How far a container's life has gone; the numbers are those of `ContainerEventType`."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


# The engine's words, and its states in a list.
STAGES = {
    "create": Stage.CREATED,
    "start": Stage.STARTED,
    "die": Stage.STOPPED,
    "destroy": Stage.DELETED,
}
_STATES = {
    "created": Stage.CREATED,
    "running": Stage.STARTED,
    "paused": Stage.STARTED,
    "restarting": Stage.STARTED,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom an event is about: a container or a sandbox, and its pod's names."""

    container_id: str
    record: Record
    pod: Record

    @property
    def sandbox_id(self) -> str:
        """The sandbox's id."""
        return self.container_id if self.record.kind == naming.SANDBOX else self.record.sandbox_id


@dataclass(frozen=True, slots=True)
class Happening:
    """One event: nanoseconds since the epoch."""

    subject: Subject
    stage: Stage
    time: int


class Fold:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Subject, Stage]] = {}
        self._gone: dict[str, None] = {}
        self._time = 0
        self._told: set[tuple[str, Stage]] = set()

    @property
    def time(self) -> int:
        """When the last event was, in the engine's time; 0 before any."""
        return self._time

    def begin(self, time: int, standing: Iterable[tuple[Subject, Stage]]) -> None:
        """Take what there is for known: only what comes after is told."""
        self._time = time
        self._known = {subject.container_id: (subject, stage) for subject, stage in standing}

    def event(self, subject: Subject, stage: Stage, time: int) -> list[Happening]:
        """Take an event of the engine; a replayed one tells nothing."""
        key = (subject.container_id, stage)
        if time < self._time or (time == self._time and key in self._told):
            return []
        if time > self._time:
            self._time, self._told = time, set()
        self._told.add(key)
        if subject.container_id in self._gone or self._passed(*key):
            return []
        return [self._tell(subject, stage, time)]

    def listed(self, standing: Iterable[tuple[Subject, Stage]], time: int) -> list[Happening]:
        """Take a whole list: what it shows and no event told."""
        found = {subject.container_id: (subject, stage) for subject, stage in standing}
        told: list[Happening] = []
        for subject, stage in found.values():
            told += self._advance(subject, stage, time)
        for container_id, (subject, _) in list(self._known.items()):
            if container_id not in found:
                told += self._advance(subject, Stage.DELETED, time)
        return told

    def _passed(self, container_id: str, stage: Stage) -> bool:
        """Tell whether a container's life is that far already. One that has ended may start again."""
        known = self._known.get(container_id)
        if known is None:
            return False
        again = known[1] is Stage.STOPPED and stage is Stage.STARTED
        return stage <= known[1] and not again

    def _advance(self, subject: Subject, stage: Stage, time: int) -> list[Happening]:
        """Tell every step up to a stage."""
        known = self._known.get(subject.container_id)
        if known is not None and self._passed(subject.container_id, stage):
            return []
        first = 0 if known is None else known[1] + 1
        if known is not None and stage < first:
            first = stage
        return [self._tell(subject, Stage(step), time) for step in range(first, stage + 1)]

    def _tell(self, subject: Subject, stage: Stage, time: int) -> Happening:
        if stage is Stage.DELETED:
            self._known.pop(subject.container_id, None)
            self._gone[subject.container_id] = None
            if len(self._gone) > _GONE_COUNT:
                del self._gone[next(iter(self._gone))]
        else:
            self._known[subject.container_id] = (subject, stage)
        return Happening(subject, stage, time)


def subject(container_id: str, record: Record, labels: Mapping[str, str]) -> Subject:
    """Say whom an event or an entry of a list is about."""
    pod = Record(
        kind=naming.SANDBOX,
        name=labels.get("io.kubernetes.pod.name", ""),
        namespace=labels.get("io.kubernetes.pod.namespace", ""),
        uid=labels.get(naming.UID_LABEL, ""),
        attempt=record.attempt if record.kind == naming.SANDBOX else 0,
    )
    return Subject(container_id, record, pod)


def standing(owned: Iterable[tuple[Mapping[str, Any], Record]]) -> list[tuple[Subject, Stage]]:
    """Read the engine's list of what is ours."""
    return [
        (subject(item["Id"], record, item["Labels"]), _STATES.get(item["State"], Stage.STOPPED))
        for item, record in owned
    ]
