"""Run one service's matrix: kill at each of its instants, and collect what did not hold."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol

from tests.matrix.process import Failure


class Matrix(Protocol):
    """One service's story."""

    name: str

    async def instants(self) -> list[tuple[str, int]]:
        """List the instants that the story passes."""
        ...

    async def run(self, instant: str, occurrence: int) -> bool:
        """Kill at one; tells whether it was reached."""
        ...


@dataclass
class Result:
    """What came of one matrix."""

    killed: int = 0
    unreached: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def run(matrix: Matrix, *, sample: int = 0, jobs: int = 2, only: str = "") -> Result:
    """Kill at each instant, or at `sample` of them spread over the story; SIGTERM ends it in order."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    with suppress(ValueError, RuntimeError):  # Only the main thread hears signals.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        if isinstance(matrix, AbstractAsyncContextManager):
            await stack.enter_async_context(matrix)
        return await _run(matrix, sample, jobs, only)


async def _run(matrix: Matrix, sample: int, jobs: int, only: str) -> Result:
    found = [entry for entry in await matrix.instants() if only in entry[0]]
    chosen = found if not sample else found[:: max(1, len(found) // sample)][:sample]
    result, gate = Result(), asyncio.Semaphore(jobs)

    async def one(instant: str, occurrence: int) -> None:
        async with gate:
            begin, label = time.monotonic(), f"{matrix.name} {instant} #{occurrence}"
            try:
                reached = await matrix.run(instant, occurrence)
                if reached:
                    result.killed += 1
                else:
                    result.unreached.append(label)
                said = "held" if reached else "not passed this time"
            except Failure as failure:
                result.failures.append(f"{label}: {failure}")
                said = f"FAILED: {failure}"
            print(f"  {label:<58} {time.monotonic() - begin:5.1f} s  {said}", flush=True)

    async with asyncio.TaskGroup() as group:
        for instant, occurrence in chosen:
            group.create_task(one(instant, occurrence))
    return result
