"""Wait for what nobody tells of: conditions in the kernel, in another process, behind a wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

_PAUSE_SECONDS = 0.01


async def until(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds. Raises `TimeoutError` when it does not in time."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  # what has an event is waited for by that
            await asyncio.sleep(_PAUSE_SECONDS)


async def until_told(asked: Callable[[], Awaitable[object]], seconds: float = 20) -> None:
    """Wait until a question is answered with something true. Raises `TimeoutError` when it is not in time."""
    async with asyncio.timeout(seconds):
        while not await asked():  # noqa: ASYNC110  # as above
            await asyncio.sleep(_PAUSE_SECONDS)
