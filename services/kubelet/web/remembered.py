"""Answers of somebody else that are good for a while, each asked for once at a time.

Whoever waits while somebody asks gets that answer, an error as well: else each would wait for its own
after those of all before it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from services.common.clock import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

LIMIT: Final = 4096


@dataclass(slots=True)
class _Asking:
    """A key that is asked for: how many wait, and how many times it failed meanwhile, last with `error`."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting_count: int = 0
    failure_count: int = 0
    error: Exception | None = None


class Remembered(Generic[K, V]):
    """Keeps answers; `lifetime` says for how many seconds each is good. Errors are not kept."""

    def __init__(self, clock: Clock, lifetime: Callable[[V], float]) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self._known: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._asking: dict[K, _Asking] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def get(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        """Return the answer that is kept, or ask. Raises what `ask` raises."""
        asking = self._asking.setdefault(key, _Asking())
        asking.waiting_count += 1
        failures_before = asking.failure_count
        try:
            async with asking.lock:
                found = self._known.get(key)
                if found is not None and found[0] > self._clock.monotonic():
                    return found[1]
                if asking.error is not None and asking.failure_count > failures_before:
                    raise asking.error
                value = await self._asked(asking, ask)
                self._keep(key, value)
                return value
        finally:
            asking.waiting_count -= 1
            if not asking.waiting_count:
                del self._asking[key]

    async def _asked(self, asking: _Asking, ask: Callable[[], Awaitable[V]]) -> V:
        try:
            return await ask()
        except Exception as error:
            asking.failure_count += 1
            asking.error = error
            raise

    def _keep(self, key: K, value: V) -> None:
        self._known[key] = (self._clock.monotonic() + self._lifetime(value), value)
        self._known.move_to_end(key)
        while len(self._known) > LIMIT:
            self._known.popitem(last=False)
