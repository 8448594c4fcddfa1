"""How large writable layers are.

The engine walks every layer to tell, so it is asked once a minute at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.naming import OWNER_LABEL

log = get_logger(__name__)
_FRESH_SECONDS = 60.0
# Whoever asks waits so long for new sizes, then takes the old ones.
_PATIENCE_SECONDS = 2.0


class LayerSizes:
    """Sizes by container id, and when they were taken. Asks in the server's TaskGroup."""

    def __init__(self, client: DockerClient, owner: str, clock: Clock) -> None:
        self._client = client
        self._label = f"{OWNER_LABEL}={owner}"
        self._clock = clock
        self._group: asyncio.TaskGroup | None = None
        self._asking: asyncio.Task[None] | None = None
        self._sizes: dict[str, int] = {}
        self._tried = -_FRESH_SECONDS
        self.timestamp = 0
        self.root = ""

    def bind(self, group: asyncio.TaskGroup) -> None:
        """Say in which group the engine is asked."""
        self._group = group

    async def sizes(self, wanted: frozenset[str]) -> Mapping[str, int]:
        """Return what is known; asks anew when that is old, or lacks one that is wanted."""
        now = self._clock.monotonic()
        old = now - self._tried >= _FRESH_SECONDS
        lacking = not wanted <= self._sizes.keys() and now - self._tried >= 1.0
        if (old or lacking) and self._asking is None and self._group is not None:
            self._tried = now
            self._asking = self._group.create_task(self._ask())
        if self._asking is not None and not wanted <= self._sizes.keys():
            await asyncio.wait({self._asking}, timeout=_PATIENCE_SECONDS)
        return self._sizes

    async def _ask(self) -> None:
        try:
            if not self.root:
                self.root = str((await self._client.info()).get("DockerRootDir", "/var/lib/docker"))
            listed = await self._client.containers([self._label], size=True)
            self._sizes = {item["Id"]: int(item.get("SizeRw") or 0) for item in listed}
            self.timestamp = unix_nanoseconds(self._clock.now())
        except TripodError as error:
            log.debug("Could not measure writable layers", error=error.message)
        finally:
            self._asking = None
