"""A sandbox's status with the statuses of its containers, as they are at one moment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tripod.cri.v1 import api_pb2 as pb

from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import Code
from services.kubelet.cri import convert, naming
from services.kubelet.cri.errors import CriError, SandboxNotFoundError
from services.kubelet.cri.events import Subject
from services.kubelet.cri.sandboxes import Holdings, Owned, Sandboxes

_AWAY = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sandbox, its containers, and when (nanoseconds since the epoch) they were not older."""

    owned: Owned
    status: pb.PodSandboxStatus
    containers: tuple[pb.ContainerStatus, ...]
    timestamp: int


class Snapshots:
    """Takes them."""

    def __init__(self, holdings: Holdings, sandboxes: Sandboxes, clock: Clock) -> None:
        self._holdings = holdings
        self._sandboxes = sandboxes
        self._clock = clock

    async def take(self, sandbox_id: str) -> Snapshot:
        """Look at a sandbox and each of its containers. Raises `SandboxNotFoundError`."""
        timestamp = unix_nanoseconds(self._clock.now())
        inspected, record = await self._holdings.sandbox(sandbox_id)
        members = await self._holdings.listing(naming.CONTAINER, sandbox_id=inspected["Id"])
        found = await asyncio.gather(
            *(self._holdings.find(naming.CONTAINER, item["Id"]) for item, _ in members)
        )
        statuses = tuple(convert.container_status(*owned) for owned in found if owned is not None)
        addresses = self._sandboxes.addresses(inspected["Id"], record)
        status = convert.sandbox_status(inspected, record, addresses)
        return Snapshot((inspected, record), status, statuses, timestamp)

    async def of_event(self, subject: Subject) -> tuple[pb.PodSandboxStatus, tuple[pb.ContainerStatus, ...]]:
        """Look at the pod of an event; of one that has gone its names are left.

        Waits for an engine that is away: the event must not be lost for it.
        """
        while True:
            try:
                taken = await self.take(subject.sandbox_id)
                return taken.status, taken.containers
            except SandboxNotFoundError:
                return brief(subject), ()
            except CriError as error:
                if error.code not in _AWAY:
                    raise
            await self._clock.sleep(_RETRY_SECONDS)


def brief(subject: Subject) -> pb.PodSandboxStatus:
    """Name the pod of an event."""
    return pb.PodSandboxStatus(
        id=subject.sandbox_id,
        metadata=convert.sandbox_metadata(subject.pod),
        state=pb.SANDBOX_NOTREADY,
    )
