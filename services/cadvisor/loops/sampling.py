"""One snapshot each second, for all readers. A reader never causes a sample."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from services.cadvisor.core.model import Identity, Interface, Snapshot, Stats
from services.cadvisor.core.rates import with_rate
from services.cadvisor.loops.names import Names
from services.cadvisor.ports import Kernel, Sample
from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.common.logs import get_logger

log = get_logger(__name__)
PERIOD_SECONDS = 1.0
NAMES_SECONDS = 0.25
_DISCOVER = failpoints.step("cgroups.discover")
_SAMPLE = failpoints.step("cgroups.sample")
_PUBLISH = failpoints.step("snapshot.publish")
READER_QUEUE = 16
SANDBOX_NAME = "POD"


class Sampler:
    """Takes snapshots and hands them out."""

    def __init__(self, kernel: Kernel, names: Names, clock: Clock, *, history: int) -> None:
        self._kernel = kernel
        self._names = names
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
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
        if self._names.want(sample.containers.keys()):
            # So that a new container is named in its first snapshot, if its name can be had.
            await self._names.settled(NAMES_SECONDS)
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

    def _snapshot(self, sample: Sample, duration_ns: int) -> Snapshot:
        now, before = self._clock.now(), self.latest()
        seconds = (now - before.time).total_seconds() if before else 0.0
        previous = {stats.identity.id: stats for stats in before.containers} if before else {}
        shared = {interface.name for interface in sample.machine.interfaces}
        made = [
            self._complete(stats, previous.get(name), seconds, shared)
            for name, stats in sample.containers.items()
        ]
        made.sort(key=lambda stats: stats.identity.path)
        machine = sample.machine
        cpu = with_rate(machine.cpu, before.machine.cpu if before else None, seconds)
        return Snapshot(now, replace(machine, cpu=cpu), tuple(made), self._names.error, duration_ns)

    def _complete(self, stats: Stats, before: Stats | None, seconds: float, shared: Set[str]) -> Stats:
        """Add the rate and names; return the object before when nothing has changed, as history holds many.

        Only a sandbox owns its pod's network; its containers share it.
        """
        identity = self._named(stats.identity, before.identity if before else None)
        cpu = with_rate(stats.cpu, before.cpu if before else None, seconds)
        own = identity.container in ("", SANDBOX_NAME) and not uses_host_network(stats.interfaces, shared)
        interfaces = stats.interfaces if own else ()
        made = Stats(identity, cpu, stats.memory, interfaces, stats.disks, stats.processes)
        return before if before == made and before is not None else made

    def _named(self, raw: Identity, before: Identity | None) -> Identity:
        found = self._names.identities.get(raw.id)
        if found is None:
            return raw
        made = replace(found, path=raw.path, created=raw.created)
        return before if before is not None and before == made else made

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


def uses_host_network(interfaces: Sequence[Interface], shared: Set[str]) -> bool:
    """Tell whether a container's interfaces are the machine's, which are not its own."""
    return bool(interfaces) and {interface.name for interface in interfaces} == shared


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
