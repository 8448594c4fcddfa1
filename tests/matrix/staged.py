"""A story that is told on a stage, again and again: what matrices on a real engine share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Generic, TypeVar

from tests.matrix.process import Service, enumerate_instants

S = TypeVar("S")


class StagedMatrix(ABC, Generic[S]):
    """The instants of a story. A stage with a bystander is used again for the next instant."""

    name: str
    steps: tuple[str, ...]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self._stages: list[tuple[S, AsyncExitStack]] = []
        self._count = 0

    @abstractmethod
    def _stage(self, name: str) -> AbstractAsyncContextManager[S]:
        """Make a stage whose service does not run."""

    @abstractmethod
    def _service(self, stage: S) -> Service:
        """Return the service that is killed."""

    @abstractmethod
    async def _perform(self, stage: S, since: float) -> None:
        """Tell the story and judge it; `since` is the time at which it began. Raises `Failure`."""

    async def __aexit__(self, *exception: object) -> None:
        """End every stage, and what they stand on."""
        for _, stack in self._stages:
            await stack.aclose()
        await self._stack.aclose()

    async def _take(self) -> tuple[S, AsyncExitStack]:
        """Take a free stage, or make one."""
        if self._stages:
            return self._stages.pop()
        self._count += 1
        stack = AsyncExitStack()
        return await stack.enter_async_context(self._stage(f"{self.name}-{self._count}")), stack

    async def _play(self, failpoints: str) -> bool:
        """Go through the story once; a stage on which it failed is not used again."""
        stage, stack = await self._take()
        service = self._service(stage)
        service.killed_itself, since = False, time.time()
        try:
            await service.start(failpoints)
            await self._perform(stage, since)
        except BaseException:
            await stack.aclose()
            raise
        self._stages.append((stage, stack))
        return service.killed_itself

    async def instants(self) -> list[tuple[str, int]]:
        """Go through the story once without kills."""
        log = self._folder / "instants.log"
        await self._play(f"*=log({log})")
        return enumerate_instants(
            [name for name in log.read_text().split() if name.startswith(self.steps)], 1
        )

    async def run(self, instant: str, occurrence: int) -> bool:
        """Kill at one instant."""
        off = f"{occurrence - 1}*off->" if occurrence > 1 else ""
        return await self._play(f"{instant}={off}1*kill->off")
