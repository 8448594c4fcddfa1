"""Follows the engine's events for all readers. A reader that does not keep up is cut off, not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import Code, TripodError
from services.common.logs import get_logger
from services.kubelet.cri import events
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.events import STAGES, Fold, Happening
from services.kubelet.cri.naming import OWNER_LABEL
from services.kubelet.cri.register import Register
from services.kubelet.cri.sandboxes import Holdings

log = get_logger(__name__)
_RETRY_SECONDS = 0.5
QUEUE_LENGTH = 1024


class _Reader:
    """One reader's queue; `cut` once it overflowed."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Happening] = asyncio.Queue(QUEUE_LENGTH)
        self.cut = False

    def offer(self, happening: Happening) -> None:
        try:
            self.queue.put_nowait(happening)
        except asyncio.QueueFull:
            self.cut = True


class EventHub:
    """Reads one stream of the engine and shares it out. `run` is a task of the server's."""

    def __init__(
        self, streams: EngineStreams, holdings: Holdings, register: Register, owner: str, clock: Clock
    ) -> None:
        self._streams = streams
        self._holdings = holdings
        self._register = register
        self._owner = owner
        self._clock = clock
        self._fold = Fold()
        self._began = asyncio.Event()
        self._readers: set[_Reader] = set()

    async def run(self) -> None:
        """Follow until cancelled; after a break, from the last event's time on."""
        while True:
            try:
                await self._follow()
            except (TripodError, ValueError, KeyError) as error:
                log.debug("Lost the engine's events", error=str(error))
            await self._clock.sleep(_RETRY_SECONDS)

    async def _follow(self) -> None:
        now = unix_nanoseconds(self._clock.now())
        since = self._fold.time or now
        ours, _ = await self._holdings.claimants()
        if self._began.is_set():
            self._tell(self._fold.listed(events.standing(ours), now))
        else:
            self._fold.begin(now, events.standing(ours))
            self._began.set()
        filters = {
            "type": ["container"],
            "event": list(STAGES),
            "label": [f"{OWNER_LABEL}={self._owner}"],
        }
        moment = f"{since // 1_000_000_000}.{since % 1_000_000_000:09d}"
        async for event in self._streams.events(filters, moment):
            attributes = event["Actor"]["Attributes"]
            stage = STAGES.get(str(event.get("Action")))
            record = self._register.recognise(event["id"], attributes, attributes.get("name", ""))
            if record is not None and stage is not None:
                subject = events.subject(event["id"], record, attributes)
                self._tell(self._fold.event(subject, stage, int(event["timeNano"])))

    def _tell(self, happenings: Iterable[Happening]) -> None:
        for happening in happenings:
            for reader in self._readers:
                reader.offer(happening)

    async def read(self) -> AsyncIterator[list[Happening]]:
        """Yield what happens from now on, as much as waits at a time. Raises when the reader is too slow."""
        await self._began.wait()
        reader = _Reader()
        self._readers.add(reader)
        try:
            while True:
                found = [await reader.queue.get()]
                while not reader.queue.empty():
                    found.append(reader.queue.get_nowait())
                if reader.cut:
                    raise CriError(
                        f"More than {QUEUE_LENGTH} events waited for this reader",
                        code=Code.RESOURCE_EXHAUSTED,
                        reason="READER_TOO_SLOW",
                    )
                yield found
        finally:
            self._readers.discard(reader)
