"""Containers and samples for tests of cAdvisor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.cadvisor.core.model import Cpu, DiskIo, Identity, Interface, Memory, Processes, Snapshot, Stats
from services.cadvisor.ports import Sample
from tests.matrix.cadvisor import Cgroup

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MACHINE = Stats(Identity("/"), Cpu(usage_ns=1), Memory(usage=1))


def a_container(number: int = 1, *, name: str = "app", pod: str = "web") -> Stats:
    """Make a container's statistics."""
    key = f"{number:064x}"
    return Stats(
        Identity(f"/docker/{key}", key, name, pod, "default", f"uid-{number}", "image:1"),
        Cpu(usage_ns=1_000_000_000 + number),
        Memory(usage=1 << 20, working_set=1 << 19, oom_kills=0),
        (Interface("eth0", 1, 2, 3, 4, 5, 6, 7, 8),),
        (DiskIo(8, 0, "sda", 1, 2, 3, 4),),
        Processes(1, 2, 3),
    )


def a_snapshot(*containers: Stats) -> Snapshot:
    """Make a snapshot."""
    return Snapshot(NOW, MACHINE, containers)


class FakeKernel:
    """Implements `Kernel` with what it is told."""

    def __init__(self, *containers: Stats) -> None:
        self.containers = {stats.identity.id: stats for stats in containers}

    def discover(self) -> None:
        """Nothing is hidden."""

    def sample(self) -> Sample:
        """Return what was told."""
        return Sample(MACHINE, dict(self.containers))


@dataclass
class FakeNames:
    """Implements `Metadata`; hangs until `answer` is set."""

    known: dict[str, Identity] = field(default_factory=dict)
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def identities(self) -> Mapping[str, Identity]:
        """Answer, if it may."""
        self.asked += 1
        await self.answer.wait()
        return dict(self.known)


@contextmanager
def cgroup(parent: str) -> Iterator[Cgroup]:
    """Make a container's cgroup with a busy process for a block."""
    made = Cgroup(parent)
    made.make()
    try:
        yield made
    finally:
        made.remove()
