"""Two connections joined: what a runtime told before it cut the connection still arrives."""

from __future__ import annotations

import asyncio

import pytest

from services.common.clock import SystemClock
from services.kubelet.web.relay import pump_both

pytestmark = pytest.mark.asyncio


class Client:
    """Sends without end, and keeps what it is told."""

    def __init__(self) -> None:
        self.told = b""

    async def receive(self) -> bytes:
        """Send more."""
        await asyncio.sleep(0)
        return b"input"

    async def send(self, data: bytes) -> None:
        """Be told."""
        self.told += data


class Runtime:
    """Takes no input, as behind a reset, and has last words, which are slow to come."""

    def __init__(self) -> None:
        self.refused = asyncio.Event()
        self._words = [b"last ", b"words"]

    async def receive(self) -> bytes:
        """Tell the next words, once an input was refused; b"" at the end."""
        await self.refused.wait()
        for _ in range(20):
            await asyncio.sleep(0)  # what waits gets its turn
        return self._words.pop(0) if self._words else b""

    async def send(self, data: bytes) -> None:
        """Refuse."""
        self.refused.set()
        raise ConnectionResetError


async def test_input_that_is_not_taken_ends_nothing_before_the_last_words() -> None:
    """The end is seen where the runtime is read."""
    client = Client()
    async with asyncio.timeout(10):
        await pump_both(client, Runtime(), SystemClock())

    assert client.told == b"last words"
