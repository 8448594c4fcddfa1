"""Join two upgraded connections byte for byte, until either side ends.

Nothing is held beyond what both sides' buffers take: a side that does not read stops the other. What one side
has sent before its end still reaches the other; then both are closed: the protocols inside have half ends of
their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Final

from services.common.clock import Clock
from services.common.spdy.wire import DialedWire, SocketWire, Wire

IDLE_SECONDS: Final = 4 * 3600.0
_LOOK_SECONDS: Final = 60.0


class _Traffic:
    """Counts what has passed."""

    def __init__(self) -> None:
        self.count = 0


async def join(client: SocketWire, runtime: DialedWire, clock: Clock) -> None:
    """Move bytes both ways until a side ends, or four hours pass without any; close both."""
    try:
        await pump_both(client, runtime, clock)
        await client.linger()
        await client.drained()
    finally:
        client.abort()
        runtime.abort()


async def pump_both(client: Wire, runtime: Wire, clock: Clock) -> None:
    """Move bytes both ways until a side ends. Neither is closed."""
    traffic = _Traffic()
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        pumps = (
            group.create_task(_until(ended, _take(client, runtime, traffic))),
            group.create_task(_until(ended, _give(runtime, client, traffic))),
            group.create_task(_until(ended, _watch(traffic, clock))),
        )
        await ended.wait()
        for pump in pumps:
            pump.cancel()


async def _until(ended: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Tell when some work has ended."""
    try:
        await work
    finally:
        ended.set()


async def _take(client: Wire, runtime: Wire, traffic: _Traffic) -> None:
    """Pass on what the client sends until it ends; what the runtime takes no more is dropped.

    A runtime that takes no more may have told the end before, and its end is seen where it is read.
    """
    taken = True
    while data := await client.receive():
        traffic.count += 1
        try:
            if taken:
                await runtime.send(data)
        except ConnectionError:
            taken = False


async def _give(runtime: Wire, client: Wire, traffic: _Traffic) -> None:
    """Pass on what the runtime sends until either ends."""
    with contextlib.suppress(ConnectionError):
        while data := await runtime.receive():
            traffic.count += 1
            await client.send(data)


async def _watch(traffic: _Traffic, clock: Clock) -> None:
    """Return once nothing has passed for too long."""
    seen, since = traffic.count, clock.monotonic()
    while clock.monotonic() - since < IDLE_SECONDS:
        await clock.sleep(_LOOK_SECONDS)
        if traffic.count != seen:
            seen, since = traffic.count, clock.monotonic()
