"""State with a revision that others can watch: a snapshot, a bookmark, then every change.

Patterns from etcd (revision, resume, compaction): see docs/architecture.md.
Nothing grows without bound: the history and every reader's queue have a cap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from services.common.errors import Code, TripodError

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Upserted(Generic[V]):
    """A value came or changed; carries it in full."""

    revision: int
    key: str
    value: V
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Deleted:
    """A value went."""

    revision: int
    key: str
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Everything up to `revision` was told."""

    revision: int


class _Reader(Generic[V]):
    """One watcher's queue; `cut` once it overflowed."""

    def __init__(self, limit: int) -> None:
        self.queue: asyncio.Queue[Upserted[V] | Deleted] = asyncio.Queue(limit)
        self.cut = False

    def offer(self, change: Upserted[V] | Deleted) -> None:
        if self.cut:
            return
        try:
            self.queue.put_nowait(change)
        except asyncio.QueueFull:
            self.cut = True


class WatchHub(Generic[V]):
    """Values by key, with watchers. Belongs to one event loop.

    `run_id` names this run of the server: a revision of another run cannot be resumed.
    """

    def __init__(self, run_id: str, *, history: int = 1024, queue: int = 1024) -> None:
        self.run_id = run_id
        self.revision = 0
        self._values: dict[str, Upserted[V]] = {}
        self._history: deque[Upserted[V] | Deleted] = deque(maxlen=history)
        self._readers: set[_Reader[V]] = set()
        self._queue_limit = queue

    def snapshot(self) -> Mapping[str, V]:
        """Return the values now."""
        return MappingProxyType({key: entry.value for key, entry in self._values.items()})

    def get(self, key: str) -> V | None:
        """Return one value; None when there is none."""
        entry = self._values.get(key)
        return entry.value if entry else None

    def upsert(self, key: str, value: V, traceparent: str = "") -> int:
        """Set a value and tell every watcher. Returns the new revision."""
        self.revision += 1
        change = Upserted(self.revision, key, value, traceparent)
        self._values[key] = change
        self._tell(change)
        return self.revision

    def delete(self, key: str, traceparent: str = "") -> int:
        """Remove a value and tell every watcher; an absent one changes nothing. Returns the revision."""
        if self._values.pop(key, None) is not None:
            self.revision += 1
            self._tell(Deleted(self.revision, key, traceparent))
        return self.revision

    def _tell(self, change: Upserted[V] | Deleted) -> None:
        self._history.append(change)
        for reader in self._readers:
            reader.offer(change)

    async def watch(
        self, after_revision: int = 0, run_id: str = "", *, heartbeat_seconds: float = 10.0
    ) -> AsyncGenerator[Upserted[V] | Deleted | Bookmark, None]:
        """Yield the snapshot or the missed changes, a bookmark, then changes; bookmarks in quiet times.

        Raises `REVISION_COMPACTED` when `after_revision` cannot be resumed, and
        `WATCH_TOO_SLOW` when the reader fell behind by more than the queue holds.
        """
        reader: _Reader[V] = _Reader(self._queue_limit)
        backlog = self._backlog(after_revision, run_id)
        bookmark = Bookmark(self.revision)
        self._readers.add(reader)
        try:
            for change in backlog:
                yield change
            yield bookmark
            while True:
                yield await self._next(reader, heartbeat_seconds)
        finally:
            self._readers.discard(reader)

    async def _next(self, reader: _Reader[V], heartbeat: float) -> Upserted[V] | Deleted | Bookmark:
        if reader.cut:
            raise TripodError(
                f"The reader fell behind by more than {self._queue_limit} events; start over from a snapshot",
                code=Code.ABORTED,
                reason="WATCH_TOO_SLOW",
                metadata={"limit": str(self._queue_limit)},
            )
        try:
            async with asyncio.timeout(heartbeat):
                return await reader.queue.get()
        except TimeoutError:
            return Bookmark(self.revision)

    def _backlog(self, after: int, run_id: str) -> list[Upserted[V] | Deleted]:
        if after == 0:
            return sorted(self._values.values(), key=lambda entry: entry.revision)
        oldest = self._history[0].revision if self._history else self.revision + 1
        if run_id != self.run_id or after > self.revision or after < oldest - 1:
            raise TripodError(
                f"Revision {after} cannot be resumed; start over without a revision",
                code=Code.OUT_OF_RANGE,
                reason="REVISION_COMPACTED",
                metadata={"after_revision": str(after), "server_run_id": self.run_id},
            )
        return [change for change in self._history if change.revision > after]
