"""Keep a selection of a Kubernetes API server's objects here: list, watch, and go on for ever.

- Only a complete list or an event changes anything: an error is never an empty list.
- A stream that ends in order is resumed after its last event; one that is cut, from the last
  bookmark but one: only bookmarks say that everything before them was told, and one may have
  overtaken an event. What comes again is dropped (`replica`).
- A revision that is gone (410) means a new list. Attempts that fail are spaced out, with jitter;
  a server that could not be reached and answers somebody again is asked at once.
- A stream on which bookmarks came and then nothing more is dead.

Source: client-go `cache.Reflector`; Kubernetes API concepts, "Efficient detection of changes".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from random import random
from typing import Generic, TypeVar

from services.common import kubeerror
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json, Selection, WatchEvent
from services.common.logs import get_logger
from services.common.replica import Change, Replica, newer, revision_of

V = TypeVar("V")
T = TypeVar("T")
log = get_logger(__name__)
_WATCH_SECONDS = 300
# The server sends a bookmark each minute.
_SILENCE_SECONDS = 150.0
_OVERTIME_SECONDS = 30.0
_LOOK_SECONDS = 10.0
_FIRST_RETRY_SECONDS = 0.8
_LAST_RETRY_SECONDS = 30.0
_SPACING_SECONDS = 1.0


class Reflector(Generic[V]):
    """One selection, read by `read`, whose changes are told to `tell` in the order that they happened.

    `read` raises `ValueError` for what it cannot read: the object stays what it was before.
    `tell` must not wait; it is given all changes of a list, or those of one event. `jitter` is 0 to 1.
    """

    def __init__(
        self,
        api: KubeApi,
        selection: Selection,
        *,
        read: Callable[[Json], V],
        tell: Callable[[Sequence[Change[V]]], None],
        clock: Clock,
        jitter: Callable[[], float] = random,
    ) -> None:
        self.selection = selection
        # Set once the first list was told.
        self.synced = asyncio.Event()
        self._api = api
        self._tell = tell
        self._clock = clock
        self._jitter = jitter
        self._replica = Replica(read, self._note_unreadable)
        # Where a watch begins after a cut, the bookmark after that, and the latest that was told.
        self._mark = ""
        self._bookmark = ""
        self._latest = ""
        self._failures = 0
        self._unreachable = False
        self._fault: tuple[datetime, str] | None = None
        self._heard_at = 0.0
        self._limit_seconds = 0.0

    def values(self) -> Mapping[str, V]:
        """Return the objects by key."""
        return self._replica.values()

    def fault(self) -> str | None:
        """Say what fails and since when; None while the selection is followed."""
        if self._fault is None:
            return None
        since, what = self._fault
        return f"{self.selection} are not followed since {since.strftime('%Y-%m-%dT%H:%M:%SZ')}: {what}"

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            began = self._clock.monotonic()
            try:
                if not self._mark:
                    await self._list()
                await self._watch()
                self._unreachable = False
                self._failures, pause = 0, _SPACING_SECONDS - (self._clock.monotonic() - began)
            except TripodError as error:
                pause = self._failed(error, self._clock.monotonic() - began)
            if pause > 0:
                await self._rest(pause * (1 + 0.5 * self._jitter()))

    async def _rest(self, seconds: float) -> None:
        """Wait; no longer than until a server that could not be reached answers somebody."""
        if not self._unreachable:
            await self._clock.sleep(seconds)
            return
        async with asyncio.TaskGroup() as group:
            slept = group.create_task(self._clock.sleep(seconds))
            back = group.create_task(self._api.recovery())
            await asyncio.wait({slept, back}, return_when=asyncio.FIRST_COMPLETED)
            early = not slept.done()
            slept.cancel()
            back.cancel()
        if early:
            # Not all at once.
            await self._clock.sleep(_SPACING_SECONDS * self._jitter())

    def _failed(self, error: TripodError, lasted_seconds: float) -> float:
        """Note a failure; returns how long to wait."""
        self._unreachable = False
        if isinstance(error, KubeApiError) and error.expired:
            log.info("Listed again since the revision is gone", resource=str(self.selection))
            self._mark = ""
            self._failures += 1
            return self._step() if self._failures > 1 else 0.0
        if error.reason == kubeerror.STREAM_CUT:
            return _SPACING_SECONDS - lasted_seconds
        self._failures += 1
        self._unreachable = error.reason == kubeerror.UNREACHABLE
        if self._fault is None:
            self._fault = (self._clock.now(), error.message)
            log.warning("Lost the API server", resource=str(self.selection), error=error.message)
        self._fault = (self._fault[0], error.message)
        return max(self._step(), error.retry_after_seconds or 0.0)

    def _step(self) -> float:
        return float(min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10)))

    def _works(self) -> None:
        if self._fault is not None:
            log.info("Followed the API server again", resource=str(self.selection))
            self._fault = None

    async def _list(self) -> None:
        """Take the whole selection, in parts, and tell what differs."""
        page = await self._api.list(self.selection)
        items = list(page.items)
        while page.next_token:
            page = await self._api.list(self.selection, token=page.next_token)
            items += page.items
        changes = self._understood(lambda: self._replica.listed(items))
        self._works()
        self._mark = self._bookmark = self._latest = page.revision
        if changes:
            self._tell(changes)
        self.synced.set()

    async def _watch(self) -> None:
        """Follow one stream to its end, watched over for silence."""
        seconds = int(_WATCH_SECONDS * (1 + self._jitter()))
        self._heard_at, self._limit_seconds = self._clock.monotonic(), seconds + _OVERTIME_SECONDS
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_on(seconds))
            watching = group.create_task(self._silence())
            await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            watching.cancel()
        if reading.cancelled():
            raise self._cut("the stream fell silent")
        if (error := reading.result()) is not None:
            raise error

    async def _read_on(self, seconds: int) -> TripodError | None:
        """Read one stream; returns what it ended with."""
        try:
            await self._stream(seconds)
        except TripodError as error:
            return error
        return None

    async def _silence(self) -> None:
        """Return when the stream has been silent for too long."""
        while self._clock.monotonic() - self._heard_at < self._limit_seconds:
            await self._clock.sleep(_LOOK_SECONDS)

    async def _stream(self, seconds: int) -> None:
        async with aclosing(self._api.watch(self.selection, revision=self._mark, seconds=seconds)) as events:
            async for event in events:
                self._works()
                self._heard_at = self._clock.monotonic()
                if event.type != "OPENED":
                    self._failures = 0
                    self._take(event)
        # It ended in order: all that happened up to its last event was told.
        self._mark = self._bookmark = self._latest

    def _take(self, event: WatchEvent) -> None:
        revision = self._understood(lambda: revision_of(event.object))
        self._latest = revision if newer(revision, self._latest) else self._latest
        if event.type == "BOOKMARK":
            self._mark, self._bookmark = self._bookmark, revision
            self._limit_seconds = _SILENCE_SECONDS
            return
        take = self._replica.went if event.type == "DELETED" else self._replica.came
        if changes := self._understood(lambda: take(event.object)):
            self._tell(changes)

    def _understood(self, read: Callable[[], T]) -> T:
        """Run `read`; what is no object at all cuts the stream."""
        try:
            return read()
        except ValueError as error:
            raise self._cut(str(error)) from error

    def _cut(self, why: str) -> TripodError:
        what = f"watch {self.selection}"
        return kubeerror.unreachable(what, why, sent=True, reason=kubeerror.STREAM_CUT)

    def _note_unreadable(self, key: str, error: ValueError) -> None:
        log.warning("Could not read an object", resource=str(self.selection), key=key, error=str(error))
