"""Run a service from its first line to its exit code.

SIGTERM and SIGINT ask it to end; a second one, or 8 s, ends it at once. One
TaskGroup holds everything that runs: a task that dies takes the service down, and
whoever composed it starts it again.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType

from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.lean import Memory
from services.common.logs import get_logger

HARD_EXIT_SECONDS = 8.0
# What a hanging thread gets to end at the end.
_LEAVE_SECONDS = 0.5
_FIRST_RESTART_SECONDS = 0.1
_CALM_SECONDS = 60.0
_ARENAS = 2
_TRIM_SECONDS = 60.0
log = get_logger(__name__)


def run(main: Callable[[asyncio.Event], Awaitable[None]], *, service: str) -> int:
    """Run `main` until it returns; it should when the event is set. Returns the exit code.

    0 after an orderly end, 1 after a fault, which is logged.
    """
    memory = Memory()
    memory.share_arenas(_ARENAS)
    code = 0
    try:
        asyncio.run(_with_signals(main, service, memory))
    except Exception as error:
        for leaf in _flat(error):
            _log_end(service, leaf)
        code = 1
    if code == 0:
        log.info("Ended", service=service)
    _leave(code)
    return code


def _leave(code: int) -> None:
    """Wait for no thread that hangs in a call: all that must be kept is kept by now."""
    timer = threading.Timer(_LEAVE_SECONDS, _exit_now, (code,))
    timer.daemon = True
    timer.start()


def _log_end(service: str, error: BaseException) -> None:
    if isinstance(error, TripodError):
        log.error("Ended with an error", service=service, reason=error.reason, error=error.message)
    else:
        log.error("Ended with a bug", service=service, exc_info=error)


def _flat(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _flat(inner)]
    return [error]


async def _with_signals(
    main: Callable[[asyncio.Event], Awaitable[None]], service: str, memory: Memory
) -> None:
    loop = asyncio.get_running_loop()
    end = _End(loop, service)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not the loop's own handlers: a loop that hangs in a call would never run them.
        signal.signal(number, end.on_signal)
    gc.collect()
    gc.freeze()
    _trim_again_and_again(loop, memory)
    await main(end.stop)


def _trim_again_and_again(loop: asyncio.AbstractEventLoop, memory: Memory) -> None:
    """Give back what the start and bursts of work have left."""
    memory.give_back()
    loop.call_later(_TRIM_SECONDS, _trim_again_and_again, loop, memory)


class _End:
    """Hears signals, tells the loop, and sees to it that the end comes even if the loop hangs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, service: str) -> None:
        self.stop = asyncio.Event()
        self._loop = loop
        self._service = service
        self._asked = False
        heard, self._tell = os.pipe()
        threading.Thread(target=_hard_exit, args=(heard,), name="hard-exit", daemon=True).start()

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Ask for the end; a second signal ends at once. Takes no lock: it interrupts whatever runs."""
        if self._asked:
            _exit_now()
        self._asked = True
        os.write(self._tell, b"x")
        with suppress(RuntimeError):  # The loop has ended already.
            self._loop.call_soon_threadsafe(self._begin, signal.Signals(number).name)

    def _begin(self, name: str) -> None:
        log.info("Ending on a signal", service=self._service, signal=name)
        self.stop.set()


def _hard_exit(heard: int) -> None:
    os.read(heard, 1)
    time.sleep(HARD_EXIT_SECONDS)
    _exit_now()


def _exit_now(code: int = 1) -> None:
    with suppress(RuntimeError):  # A signal came while something was written.
        sys.stdout.flush()
    os._exit(code)


async def supervise(name: str, body: Callable[[], Awaitable[None]], *, clock: Clock, budget: int = 5) -> None:
    """Run `body` for ever: start it again with back-off when it raises or returns.

    The last error is raised after `budget` failures without 60 calm seconds between them.
    """
    failures = 0
    while True:
        begin = clock.monotonic()
        try:
            await body()
            error: Exception | None = None
        except Exception as caught:
            error = caught
        if clock.monotonic() - begin > _CALM_SECONDS:
            failures = 0
        failures += 1
        if error is not None and failures > budget:
            raise error
        delay = min(10.0, _FIRST_RESTART_SECONDS * 2 ** min(failures - 1, 10))
        log.warning(
            "Restarted a loop", loop=name, error=str(error) if error else "it returned", delay_seconds=delay
        )
        await clock.sleep(delay)


async def until(stop: asyncio.Event, body: Awaitable[None]) -> None:
    """Run `body` until it ends or `stop` is set; then cancel it and wait for its clean-up."""
    async with asyncio.TaskGroup() as group:
        work = group.create_task(_awaited(body))
        waiter = group.create_task(stop.wait())
        await asyncio.wait({work, waiter}, return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        waiter.cancel()


async def _awaited(body: Awaitable[None]) -> None:
    await body
