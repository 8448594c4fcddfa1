"""Work that must finish belongs to the server, not to the call that asked for it.

A caller that gives up, or whose connection breaks, stops nothing; a second one that
asks for the same joins the work that is under way and gets the same answer.
Source: CRI-O's `timeout.bats`, which says what clients may rely on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class InFlight(Generic[T]):
    """Running work by key. Belongs to one event loop; ends with the TaskGroup that it is bound to."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[T | BaseException]] = {}

    def bind(self, group: asyncio.TaskGroup) -> None:
        """Say in which group the work runs."""
        self._group = group

    def __len__(self) -> int:
        return len(self._tasks)

    async def join(self, key: str, body: Callable[[], Awaitable[T]]) -> T:
        """Run `body`, unless work of this key runs already: then wait for that. Raises what it raised."""
        if self._group is None:
            return await body()
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = self._group.create_task(self._finish(key, body))
        result = await asyncio.shield(task)
        if isinstance(result, BaseException):
            raise result
        return result

    async def _finish(self, key: str, body: Callable[[], Awaitable[T]]) -> T | BaseException:
        try:
            return await body()
        except Exception as error:  # For whoever waits; the group must live on.
            return error
        finally:
            self._tasks.pop(key, None)
