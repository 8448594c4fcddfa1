"""One service as a process that is killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 60.0


class Failure(Exception):  # noqa: N818  # what the matrix prints
    """An invariant did not hold; the text begins with its name."""


async def until(holds: Callable[[], Awaitable[bool]], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition with a limit. Raises `Failure`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds + Service.manner.extra_seconds
    while not await holds():
        if loop.time() > deadline:
            raise Failure(f"I2 convergence: not within {seconds:g} s: {what}")
        await asyncio.sleep(0.02)


def enumerate_instants(passed: Sequence[str], occurrences: int) -> list[tuple[str, int]]:
    """Return each instant that was passed with the number of its pass, `occurrences` passes at most."""
    counts = Counter(passed)
    return [(name, n) for name in dict.fromkeys(passed) for n in range(1, min(counts[name], occurrences) + 1)]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a life ends at its instant: the failpoint's action, and the exit codes that it may have."""

    action: str
    codes: frozenset[int]
    # How much later all may come about.
    extra_seconds: float = 0.0


# A service that is told to end ends well; one that hangs just then may be cut off after 8 s.
MANNERS = {
    "KILL": Manner("kill", frozenset({-signal.SIGKILL})),
    "TERM": Manner("term", frozenset({0})),
    "TERM-HANG": Manner("term(hang)", frozenset({0, 1}), 8.0),
}


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


class Service:
    """`services.NAME` with an environment of its own. `instant` is killed in the first life alone."""

    manner: ClassVar[Manner] = MANNERS["KILL"]

    def __init__(
        self, name: str, folder: Path, environment: Mapping[str, str], *, prefix: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/gen",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "",
            "TRIPOD_LOG_FORMAT": "json",
            "TRIPOD_LISTEN": "127.0.0.1:0",
            "TRIPOD_HTTP_LISTEN": "127.0.0.1:0",
            **environment,
        }
        self._prefix = prefix
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._silence = 0
        self.lives = 0
        self.killed_itself = False
        self.hard_exit = False
        self._ended_by_us = False

    async def start(self, failpoints: str = "") -> None:
        """Start a new life. Where the failpoints say `kill`, the matrix's manner of ending is meant."""
        failpoints = failpoints.replace("1*kill", f"1*{Service.manner.action}")
        armed = {"TRIPOD_FAILPOINTS": failpoints, "TRIPOD_ALLOW_FAILPOINTS": "true"} if failpoints else {}
        with self.log.open("ab") as output:
            self._silence = output.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix,
                sys.executable,
                "-m",
                f"services.{self.name}",
                cwd=ROOT,
                env={**self.environment, **armed},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.lives += 1
        self._ended_by_us = False

    @property
    def pid(self) -> int:
        """The process id of the present life."""
        return self._process.pid if self._process else 0

    @property
    def dead(self) -> bool:
        """Whether no life goes on."""
        return self._process is None or self._process.returncode is not None

    async def revive(self) -> bool:
        """Start again if it died, which only its failpoint may have done. Tells whether it had."""
        async with self._turn:
            if not self.dead:
                return False
            code = self._process.returncode if self._process else None
            if code is not None:
                self._judge_end(code)
            await self.start()
            return True

    async def cycle(self, *, gently: bool = False) -> float:
        """End this life by SIGKILL, or by SIGTERM, and start the next. Returns how long the end took."""
        async with self._turn:
            took = await self.terminate() if gently else 0.0
            await self.kill()
            await self.start()
            return took

    def _judge_end(self, code: int) -> None:
        if code not in Service.manner.codes:
            raise Failure(f"the {self.name} ended with {code}: {self.tail()}")
        self.killed_itself = True
        if code == -signal.SIGKILL:
            return
        if self.hard_exit:
            raise Failure(f"the {self.name} ended a second time: {self.tail()}")
        self.hard_exit = code == 1
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        asked = [line["time"] for line in lines if line["event"] == "Ending on a signal"]
        ended = [line["time"] for line in lines if line["event"] == "Ended"]
        if code == 0 and (took := _seconds(asked[-1], ended[-1])) > 8.0:
            raise Failure(f"the {self.name} took {took:.1f} s to end on SIGTERM")

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_bytes()[-600:].decode(errors="replace")

    def _ends_by_failpoint(self) -> bool:
        """Tell whether it was told to end at the story's last instant, so that nobody has missed it since.

        Told by SIGTERM, it still answers what it was asked before; a second one would cut it off.
        """
        return not self._ended_by_us and b"Ending on a signal" in self.log.read_bytes()[self._silence :]

    async def ended(self, limit_seconds: float) -> int:
        """Wait until this life has ended; return its code. Raises `TimeoutError`."""
        assert self._process is not None
        async with asyncio.timeout(limit_seconds):
            return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None and not self.dead:
            self._ended_by_us = True
            self._process.kill()
            await self._process.wait()

    async def terminate(self, limit_seconds: float = 8.0) -> float:
        """SIGTERM; returns how long the end took. Raises `Failure` when it takes longer than the limit."""
        if self._process is not None and self._ends_by_failpoint():
            self._ended_by_us = True  # Judged once.
            try:
                self._judge_end(await self.ended(limit_seconds + Service.manner.extra_seconds))
            except TimeoutError as error:
                await self.kill()
                raise Failure(f"the {self.name} did not end on the SIGTERM of its failpoint") from error
            return 0.0
        if self._process is None or self.dead:
            return 0.0
        self._ended_by_us = True
        begin = asyncio.get_running_loop().time()
        self._process.terminate()
        try:
            async with asyncio.timeout(limit_seconds):
                code = await self._process.wait()
        except TimeoutError as error:
            await self.kill()
            raise Failure(f"the {self.name} did not end within {limit_seconds:g} s of SIGTERM") from error
        # Before its first word nothing is begun that would need an orderly end.
        silent = code == -signal.SIGTERM and self.log.stat().st_size == self._silence
        if code != 0 and not silent:
            raise Failure(f"the {self.name} ended with {code} on SIGTERM: {self.tail()}")
        return asyncio.get_running_loop().time() - begin
