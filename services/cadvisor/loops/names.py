"""Who containers are, asked in the background: a CRI server that hangs costs names, never samples.

A container that was not seen before is asked for at once. One that stays unknown
belongs to somebody else; it is asked for again after 1 s, 2 s, and so on up to a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set

from services.cadvisor.core.model import Identity
from services.cadvisor.ports import Metadata
from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger

log = get_logger(__name__)
_NAMES = failpoints.step("names.ask")
ASK_SECONDS = 5.0
_FIRST_SECONDS = 1.0
_STRANGER_SECONDS = 60.0
_FAILURE_SECONDS = 5.0


class Names:
    """Keeps the identities of containers. `run` asks; `want` and `identities` never wait."""

    def __init__(self, metadata: Metadata, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock
        self._wanted: Set[str] = frozenset()
        self._strangers: Set[str] = frozenset()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._delay = _FIRST_SECONDS
        self._due = 0.0
        self.identities: Mapping[str, Identity] = {}
        self.error = "Names have not been asked for yet"

    def want(self, ids: Set[str]) -> bool:
        """Say which containers there are. Tells whether somebody is asked for them now."""
        unknown = ids - self.identities.keys()
        if not unknown or self._wake.is_set():
            return False
        early = self._clock.monotonic() < self._due
        if early and (self._failed or unknown <= self._strangers):
            return False
        self._wanted = ids
        self._settled.clear()
        self._wake.set()
        return True

    @property
    def _failed(self) -> bool:
        return bool(self.error) and self._due > 0

    async def settled(self, limit_seconds: float) -> None:
        """Wait until the question of the last `want` is answered, or the time is over."""
        try:
            async with asyncio.timeout(limit_seconds):
                await self._settled.wait()
        except TimeoutError:
            return

    async def run(self) -> None:
        """Ask whenever somebody wants to know, for ever."""
        while True:
            await self._wake.wait()
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    await self._ask()
            except TripodError as error:
                self._lost(error.message, error.reason)
            except TimeoutError:
                self._lost(f"no answer in {ASK_SECONDS:g} s", "NAMES_TIMEOUT")
            finally:
                self._wake.clear()
                self._settled.set()

    async def _ask(self) -> None:
        wanted = self._wanted
        async with _NAMES:
            found = await self._metadata.identities()
        strangers = wanted - found.keys()
        again = strangers <= self._strangers
        self.identities, self.error, self._strangers = found, "", strangers
        self._wait(_STRANGER_SECONDS, again=again)
        await _NAMES.recorded()

    def _lost(self, message: str, reason: str) -> None:
        if not self.error:
            log.warning("Lost the names of containers", reason=reason, error=message)
        self._wait(_FAILURE_SECONDS, again=self._failed)
        self.error = f"No names: {message}"

    def _wait(self, most: float, *, again: bool) -> None:
        self._delay = min(most, self._delay * 2) if again else _FIRST_SECONDS
        self._due = self._clock.monotonic() + self._delay
