"""Work that several callers share and that ends with the last of them.

The other kind, which outlives its callers, is in `inflight.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Work(Generic[T]):
    task: asyncio.Task[T | Exception]
    callers: int = 0


class JointWork(Generic[T]):
    """Running work by key. Belongs to one event loop; ends with the TaskGroup that it is bound to."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._works: dict[Hashable, _Work[T]] = {}

    def bind(self, group: asyncio.TaskGroup) -> None:
        """Say in which group the work runs."""
        self._group = group

    def __len__(self) -> int:
        return len(self._works)

    async def join(self, key: Hashable, body: Callable[[], Awaitable[T]]) -> T:
        """Run `body`, or wait for work of this key that runs already. Raises what it raised.

        A caller that is cancelled leaves; when the last one leaves, the work is cancelled,
        and whoever comes then begins anew.
        """
        if self._group is None:
            return await body()
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = _Work(self._group.create_task(_finish(body)))
        work.callers += 1
        try:
            result = await asyncio.shield(work.task)
        finally:
            work.callers -= 1
            if not work.callers:
                work.task.cancel()  # Of work that is done this is nothing.
                if self._works.get(key) is work:
                    del self._works[key]
        if isinstance(result, Exception):
            raise result
        return result


async def _finish(body: Callable[[], Awaitable[T]]) -> T | Exception:
    try:
        return await body()
    except Exception as error:  # For whoever waits; the group must live on.
        return error
