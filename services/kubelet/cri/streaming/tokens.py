"""Requests that wait for their stream, each under a token that works once.

Source: kubernetes/kubelet pkg/cri/streaming/request_cache.go: single use, one minute, at most a thousand
waiting. The clock and the source of tokens are arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from services.common.clock import Clock
from services.common.errors import Code, TripodError

R = TypeVar("R")

LIFETIME_SECONDS: Final = 60.0
WAITING_LIMIT: Final = 1000


class TokenStore(Generic[R]):
    """Hands out tokens for requests. Memory only: after a restart every URL is void."""

    def __init__(self, clock: Clock, new_token: Callable[[], str]) -> None:
        self._clock = clock
        self._new_token = new_token
        self._waiting: OrderedDict[str, tuple[float, R]] = OrderedDict()

    def put(self, request: R) -> str:
        """Keep a request and return its token. Raises `TripodError` TOO_MANY_STREAMS_WAITING."""
        self._expire()
        if len(self._waiting) >= WAITING_LIMIT:
            raise TripodError(
                f"{WAITING_LIMIT} streams were asked for and not opened yet",
                code=Code.RESOURCE_EXHAUSTED,
                reason="TOO_MANY_STREAMS_WAITING",
                metadata={"limit": str(WAITING_LIMIT)},
                retry_after_seconds=LIFETIME_SECONDS,
            )
        token = self._new_token()
        self._waiting[token] = (self._clock.monotonic() + LIFETIME_SECONDS, request)
        return token

    def take(self, token: str) -> R | None:
        """Return the token's request, once; None if there is none, or its minute is over."""
        self._expire()
        found = self._waiting.pop(token, None)
        return found[1] if found else None

    def _expire(self) -> None:
        now = self._clock.monotonic()
        while self._waiting and next(iter(self._waiting.values()))[0] <= now:
            self._waiting.popitem(last=False)
