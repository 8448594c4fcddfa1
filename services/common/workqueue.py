"""A queue of keys: each key is handled by one worker at a time, and never forgotten.

Adding a key that waits already changes nothing; adding one that is being handled
makes it run once more afterwards. A handler that raises is run again after a
back-off. Source: the work queue of client-go, in what it promises.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from services.common.clock import Clock
from services.common.logs import get_logger

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0
log = get_logger(__name__)


class WorkQueue:
    """Keys that want work. Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ready: deque[str] = deque()
        self._since: dict[str, float] = {}
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._wake = asyncio.Semaphore(0)
        self._waited: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: str) -> None:
        """Ask for work on `key` soon."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._running:
            self._again.add(key)
            self._since.setdefault(key, self._clock.monotonic())
        elif key not in self._since:
            self._since[key] = self._clock.monotonic()
            self._ready.append(key)
            self._wake.release()

    def add_after(self, key: str, delay_seconds: float) -> None:
        """Ask for work on `key` in `delay_seconds`, unless an earlier time is set already."""
        if delay_seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_seconds
        present = self._timers.get(key)
        if present is not None:
            if present.when() <= due:
                return
            present.cancel()
        self._timers[key] = loop.call_at(due, self.add, key)

    def waited_seconds(self, key: str) -> float:
        """Return how long the work that runs now on `key` had waited; 0 when none runs."""
        return self._waited.get(key, 0.0)

    def next_seconds(self, key: str) -> float | None:
        """Return in how many seconds work on `key` is due, 0 while it waits or runs; None when none is."""
        if key in self._since or key in self._running:
            return 0.0
        timer = self._timers.get(key)
        return None if timer is None else max(0.0, timer.when() - asyncio.get_running_loop().time())

    async def run(self, handler: Callable[[str], Awaitable[None]], *, workers: int) -> None:
        """Handle keys, `workers` of them at a time, until cancelled. No task waits for want of work."""
        free = asyncio.Semaphore(workers)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await free.acquire()
                    await self._wake.acquire()
                    group.create_task(self._work(self._ready.popleft(), handler, free))
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    async def _work(
        self, key: str, handler: Callable[[str], Awaitable[None]], free: asyncio.Semaphore
    ) -> None:
        self._running.add(key)
        self._waited[key] = self._clock.monotonic() - self._since.pop(key)
        try:
            await handler(key)
            self._failures.pop(key, None)
        except Exception as error:
            self._retry(key, error)
        finally:
            self._finish(key)
            free.release()

    def _retry(self, key: str, error: Exception) -> None:
        count = self._failures.get(key, 0) + 1
        self._failures[key] = count
        delay = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** min(count - 1, 16))
        log.warning("Failed to work on a key", key=key, error=str(error), retry_seconds=delay)
        self.add_after(key, delay)

    def _finish(self, key: str) -> None:
        self._running.discard(key)
        self._waited.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self._ready.append(key)
            self._wake.release()
