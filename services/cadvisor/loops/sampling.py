"""One snapshot each second, for all readers. A reader never causes a sample."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from services.cadvisor.core.model import Identity, Snapshot, Stats
from services.cadvisor.core.rates import with_rate
from services.cadvisor.ports import Kernel, Metadata, Sample
from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.common.logs import get_logger

log = get_logger(__name__)
PERIOD_SECONDS = 1.0
_DISCOVER = failpoints.step("cgroups.discover")
_SAMPLE = failpoints.step("cgroups.sample")
_NAMES = failpoints.step("names.ask")
_PUBLISH = failpoints.step("snapshot.publish")
READER_QUEUE = 16
SANDBOX_NAME = "POD"


class Sampler:
    """Takes snapshots and hands them out."""

    def __init__(self, kernel: Kernel, metadata: Metadata, clock: Clock, *, history: int) -> None:
        self._kernel = kernel
        self._metadata = metadata
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        self._identities: Mapping[str, Identity] = {}
        self._metadata_error = "Names have not been asked for yet"
        self._readers: set[_Reader] = set()
        self.history: deque[Snapshot] = deque(maxlen=history)

    def latest(self) -> Snapshot | None:
        """Return the latest snapshot; None before the first."""
        return self.history[-1] if self.history else None

    async def run(self) -> None:
        """Sample on whole seconds, until cancelled; a slow one skips, it never piles up."""
        while True:
            await self.sample()
            now = self._clock.monotonic()
            await self._clock.sleep(math.floor(now) + PERIOD_SECONDS - now)

    async def sample(self) -> Snapshot:
        """Take one snapshot."""
        loop = asyncio.get_running_loop()
        begin = self._clock.monotonic()
        sample = await loop.run_in_executor(self._thread, self._look)
        if sample.containers.keys() - self._identities.keys():
            async with _NAMES:
                await self._ask_names()
            await _NAMES.recorded()
        snapshot = self._snapshot(sample, round((self._clock.monotonic() - begin) * 1e9))
        async with _PUBLISH:
            self.history.append(snapshot)
            for reader in self._readers:
                reader.offer(snapshot)
        await _PUBLISH.recorded()
        return snapshot

    def _look(self) -> Sample:
        with _DISCOVER:
            self._kernel.discover()
        _DISCOVER.recorded_in_thread()
        with _SAMPLE:
            sample = self._kernel.sample()
        _SAMPLE.recorded_in_thread()
        return sample

    async def _ask_names(self) -> None:
        try:
            self._identities = await self._metadata.identities()
            self._metadata_error = ""
        except TripodError as error:
            if not self._metadata_error:
                log.warning("Lost the names of containers", reason=error.reason, error=error.message)
            self._metadata_error = f"No names: {error.message}"

    def _snapshot(self, sample: Sample, duration_ns: int) -> Snapshot:
        now, before = self._clock.now(), self.latest()
        previous = {stats.identity.id: stats for stats in before.containers} if before else {}
        containers = []
        for name, stats in sorted(sample.containers.items(), key=lambda item: item[1].identity.path):
            old = previous.get(name)
            rated = with_rate(stats.cpu, now, old.cpu if old else None, before.time if before else None)
            apart = without_host_network(replace(stats, cpu=rated), sample.machine)
            containers.append(self._named(apart))
        machine = sample.machine
        cpu = with_rate(
            machine.cpu, now, before.machine.cpu if before else None, before.time if before else None
        )
        return Snapshot(now, replace(machine, cpu=cpu), tuple(containers), self._metadata_error, duration_ns)

    def _named(self, stats: Stats) -> Stats:
        """Add names. Only a sandbox owns its pod's network; its containers share it."""
        found = self._identities.get(stats.identity.id)
        if found is None:
            return stats
        identity = replace(found, path=stats.identity.path, created=stats.identity.created)
        interfaces = stats.interfaces if found.container == SANDBOX_NAME else ()
        return replace(stats, identity=identity, interfaces=interfaces)

    async def watch(self) -> AsyncIterator[Snapshot]:
        """Yield the latest snapshot and every later one. Raises `WATCH_TOO_SLOW`."""
        reader = _Reader()
        self._readers.add(reader)
        try:
            latest = self.latest()
            if latest is not None:
                yield latest
            while True:
                yield await reader.next()
        finally:
            self._readers.discard(reader)


def without_host_network(stats: Stats, machine: Stats) -> Stats:
    """Leave the interfaces out of a container that uses the machine's own network: they are not its own."""
    names = {interface.name for interface in stats.interfaces}
    shared = bool(names) and names == {interface.name for interface in machine.interfaces}
    return replace(stats, interfaces=()) if shared else stats


class _Reader:
    """One watcher's queue; `cut` once it overflowed."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Snapshot] = asyncio.Queue(READER_QUEUE)
        self._cut = False

    def offer(self, snapshot: Snapshot) -> None:
        try:
            self._queue.put_nowait(snapshot)
        except asyncio.QueueFull:
            self._cut = True

    async def next(self) -> Snapshot:
        if self._cut:
            raise TripodError(
                f"The reader fell behind by more than {READER_QUEUE} snapshots; start over",
                code=Code.ABORTED,
                reason="WATCH_TOO_SLOW",
                metadata={"limit": str(READER_QUEUE)},
            )
        return await self._queue.get()
