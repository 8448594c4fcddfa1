"""Answers of somebody else that are good for a while, each asked for once at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from services.common.clock import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

LIMIT: Final = 4096


class Remembered(Generic[K, V]):
    """Keeps answers; `lifetime` says for how many seconds each is good. Errors are not kept."""

    def __init__(self, clock: Clock, lifetime: Callable[[V], float]) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self._known: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._asking: dict[K, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def get(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        """Return the answer that is kept, or ask. Raises what `ask` raises."""
        lock, waiting = self._asking.get(key, (asyncio.Lock(), 0))
        self._asking[key] = (lock, waiting + 1)
        try:
            async with lock:
                found = self._known.get(key)
                if found is not None and found[0] > self._clock.monotonic():
                    return found[1]
                value = await ask()
                self._keep(key, value)
                return value
        finally:
            lock, waiting = self._asking[key]
            if waiting == 1:
                del self._asking[key]
            else:
                self._asking[key] = (lock, waiting - 1)

    def _keep(self, key: K, value: V) -> None:
        self._known[key] = (self._clock.monotonic() + self._lifetime(value), value)
        self._known.move_to_end(key)
        while len(self._known) > LIMIT:
            self._known.popitem(last=False)
