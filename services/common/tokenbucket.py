"""A rate limit: so many at once, and so many a second after that."""

from __future__ import annotations

from services.common.clock import Clock


class TokenBucket:
    """Holds at most `burst` tokens and gains `per_second`. Belongs to one event loop."""

    def __init__(self, clock: Clock, *, per_second: float, burst: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._looked_at = clock.monotonic()

    def try_take(self) -> bool:
        """Take a token if there is one now."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    async def take(self) -> float:
        """Take a token, waiting for it in the order of the calls. Returns the seconds of the wait."""
        self._fill()
        self._tokens -= 1
        wait = max(0.0, -self._tokens / self._per_second)
        if wait:
            try:
                await self._clock.sleep(wait)
            except BaseException:
                self._tokens += 1
                raise
        return wait

    def _fill(self) -> None:
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._looked_at) * self._per_second)
        self._looked_at = now
