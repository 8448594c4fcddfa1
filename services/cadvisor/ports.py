"""What cAdvisor's inside needs from the outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from services.cadvisor.core.model import Identity, Stats


@dataclass(frozen=True, slots=True)
class Sample:
    """What the kernel said at one moment: the machine, and containers by their ids."""

    machine: Stats
    containers: Mapping[str, Stats]


class Kernel(Protocol):
    """Reads cgroups and /proc. Blocking: called in a thread of its own."""

    def discover(self) -> None:
        """Look for containers that came, and forget those that went."""
        ...

    def sample(self) -> Sample:
        """Read everything once."""
        ...


class Metadata(Protocol):
    """Knows the names of containers."""

    async def identities(self) -> Mapping[str, Identity]:
        """Return who containers are, by id; paths are empty. Raises `TripodError`."""
        ...
