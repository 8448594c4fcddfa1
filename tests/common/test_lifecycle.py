"""How a service ends: by a signal, by a fault, and in time."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from services.common.lifecycle import supervise
from tests.fakes.clock import FakeClock

PROGRAM = """
import asyncio, sys, threading
from concurrent.futures import ThreadPoolExecutor
from services.common import lifecycle
from services.common.errors import Code, TripodError
lifecycle.HARD_EXIT_SECONDS = 30 if sys.argv[1] == "thread" else 0.5
async def main(stop):
    print("ready", flush=True)
    if sys.argv[1] == "stuck":
        threading.Event().wait()
    if sys.argv[1] == "fault":
        raise TripodError("it broke", code=Code.INTERNAL, reason="BROKE")
    await stop.wait()
    if sys.argv[1] == "hang":
        await asyncio.Event().wait()
    if sys.argv[1] == "thread":
        asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(), threading.Event().wait)
sys.exit(lifecycle.run(main, service="x"))
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        pytest.param("orderly", 0, id="an-orderly-end"),
        pytest.param("fault", 1, id="a-fault"),
        pytest.param("hang", 1, id="a-hang-is-cut-off"),
        pytest.param("stuck", 1, id="a-loop-that-hangs-in-a-call-is-cut-off"),
        pytest.param("thread", 0, id="a-thread-that-hangs-is-not-waited-for"),
    ],
)
def test_the_exit_code_says_how_it_ended(how: str, expected: int) -> None:
    """Whoever composed the service learns from the code, within the time."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    if how != "fault":
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)

    assert process.returncode == expected


@pytest.mark.asyncio
async def test_a_loop_that_keeps_failing_takes_the_service_down() -> None:
    """A crash budget ends what cannot be mended by trying again."""
    runs = 0

    async def body() -> None:
        nonlocal runs
        runs += 1
        raise ValueError(f"run {runs}")

    class Impatient(FakeClock):
        """Sleeps by moving its own time."""

        async def sleep(self, seconds: float) -> None:
            self._elapsed += seconds

    with pytest.raises(ValueError, match="run 4"):
        await supervise("x", body, clock=Impatient(), budget=3)
