"""Tokens work once, for a minute, and there are never more than a thousand."""

from __future__ import annotations

from itertools import count

import pytest

from services.common.errors import TripodError
from services.kubelet.cri.streaming.tokens import TokenStore
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio


def a_store(clock: FakeClock) -> TokenStore[str]:
    """A store with predictable tokens."""
    numbers = count()
    return TokenStore(clock, lambda: f"token-{next(numbers)}")


async def test_a_token_works_once() -> None:
    """Whoever reads it from a log or a history later gets nothing."""
    store = a_store(FakeClock())
    token = store.put("request")

    assert store.take(token) == "request"
    assert store.take(token) is None


async def test_a_token_is_void_after_a_minute() -> None:
    """Until then it is good."""
    clock = FakeClock()
    store = a_store(clock)
    early, late = store.put("early"), store.put("late")

    await clock.advance(59.9)
    assert store.take(early) == "early"

    await clock.advance(0.1)
    assert store.take(late) is None


async def test_more_than_a_thousand_waiting_are_refused_until_some_expire() -> None:
    """Memory stays bounded, whoever asks."""
    clock = FakeClock()
    store = a_store(clock)
    for _ in range(1000):
        store.put("request")

    with pytest.raises(TripodError) as full:
        store.put("one more")
    await clock.advance(60)

    assert full.value.reason == "TOO_MANY_STREAMS_WAITING"
    assert store.put("one more")
