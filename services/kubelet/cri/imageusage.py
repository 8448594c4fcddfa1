"""How much images and containers take, as the engine counts it.

Counting reads every file of every container's layer, which may take the engine long
where there are many. So it is done once for all who ask, at most every 30 seconds, and
who asks waits a few seconds only: then an older figure must do, or what the list of
images says, which counts shared layers more than once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.cri.inflight import InFlight

log = get_logger(__name__)
Json = dict[str, Any]
_FRESH_SECONDS = 30.0
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of all layers of images, and of all that containers wrote."""

    image_bytes: int
    container_bytes: int


def usage(counted: Json) -> Usage:
    """Read the engine's answer."""
    images = counted.get("Images") or ()
    layers = counted.get("LayersSize")
    listed = sum(int(item.get("Size") or 0) for item in images)
    containers = counted.get("Containers") or ()
    return Usage(
        int(layers) if layers is not None else listed,
        sum(int(item.get("SizeRw") or 0) for item in containers),
    )


class UsageSource(Protocol):
    """The engine, as far as it is asked here."""

    async def disk_usage(self) -> Json:
        """Count."""
        ...

    async def images(self) -> list[Json]:
        """List images."""
        ...


class ImageUsage:
    """Remembers the last count."""

    def __init__(self, client: UsageSource, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._counting: InFlight[Usage] = InFlight()
        self._last: Usage | None = None
        self._counted_at = 0.0

    def bind(self, group: asyncio.TaskGroup) -> None:
        """Say in which group a count runs on when its callers are gone."""
        self._counting.bind(group)

    async def look(self) -> Usage:
        """Return the count. Raises `CriError` when the engine does not answer at all."""
        if self._last is not None and self._clock.monotonic() - self._counted_at < _FRESH_SECONDS:
            return self._last
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._counting.join("df", self._count)
        except (TimeoutError, TripodError) as error:
            log.info("Could not count disk usage in time", error=str(error))
        return self._last or usage({"Images": await self._client.images()})

    async def _count(self) -> Usage:
        self._last = usage(await self._client.disk_usage())
        self._counted_at = self._clock.monotonic()
        return self._last
