"""Know which images the runtime has, for the Node of a cluster.

The runtime is asked once a minute, and soon after a pull; an error leaves what was known.
"""

from __future__ import annotations

import asyncio

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.core.node_images import Image, largest
from services.kubelet.ports import Runtime

log = get_logger(__name__)
PERIOD_SECONDS = 60.0
# However many images are pulled, the runtime is not asked more often than this.
_SPACE_SECONDS = 10.0


class NodeImages:
    """Keeps the images of one node."""

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime = runtime
        self._clock = clock
        self._wake = asyncio.Event()
        self._told = ""
        # None until the runtime has answered.
        self.images: tuple[Image, ...] | None = None

    def look(self) -> None:
        """Ask the runtime soon: an image was pulled, or the runtime answers now."""
        self._wake.set()

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            await self._rest()
            self._wake.clear()
            with telemetry.unrecorded():
                await self._read()
            await self._clock.sleep(_SPACE_SECONDS)

    async def _rest(self) -> None:
        async with asyncio.TaskGroup() as group:
            woken = group.create_task(self._wake.wait())
            slept = group.create_task(self._clock.sleep(PERIOD_SECONDS - _SPACE_SECONDS))
            await asyncio.wait({woken, slept}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            slept.cancel()

    async def _read(self) -> None:
        try:
            self.images = largest(await self._runtime.images())
        except TripodError as error:
            if error.message != self._told:
                log.warning("Could not list the images of the node", error=error.message)
            self._told = error.message
        else:
            self._told = ""
