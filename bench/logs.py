"""What it costs to write containers' logs, beside `docker logs -f` of each into a file.

Containers on an engine of the benchmark's own write lines for ever. In turn, and several times, our log
writer follows all of them, and as many `docker logs -f --timestamps` do; of each the CPU time is taken over a
while, once all have caught up. The engine's own part is told for both, and is in no bar.

Bars: our CPU for each MB is at most that of `docker logs -f`, and nobody lags by more than 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.idle import cpu_ticks
from bench.report import Bar, Result, Row, percentile, table
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.logs import LogKeeper
from tests.lab.dockerd import TEST_IMAGE, PrivateEngine, private_engine

CONTAINERS = 40
LINES_PER_SECOND = 20
ROUNDS = 3
SECONDS = 10.0
SETTLE_SECONDS = 3.0
LAG_BAR_SECONDS = 2.0
_LINE = "a line of a log that says as much as most lines of most logs do, which is not very much"
_LOG_OPTIONS = ("--log-driver", "local", "--log-opt", "max-size=64m", "--log-opt", "max-file=3")


@dataclass(frozen=True, slots=True)
class Phase:
    """What one side took: CPU seconds of its own and of the engine. The megabytes are the containers' own."""

    cpu: float
    engine_cpu: float
    megabytes: float
    lines: int
    lag_seconds: float

    @property
    def each(self) -> float:
        """CPU milliseconds for a megabyte."""
        return self.cpu * 1000 / self.megabytes if self.megabytes else float("nan")


def start(engine: PrivateEngine, containers: int, lines_per_second: int) -> list[str]:
    """Start the containers; a line at a time, and no process for a pause."""
    program = (
        f"/bin/busybox mkfifo /tmp/f; exec 3<>/tmp/f; "
        f"while :; do echo '{_LINE}'; read -t {1 / lines_per_second:.4f} x <&3; done"
    )

    def one(_: int) -> str:
        words = ["run", "-d", "--network", "none", *_LOG_OPTIONS, TEST_IMAGE, "sh", "-c", program]
        return engine.docker(*words, timeout=300).stdout.decode().strip()

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(containers)))


@contextmanager
def ours(engine: PrivateEngine, ids: Sequence[str], folder: Path) -> Iterator[list[int]]:
    """Follow with our writer, in a process of its own."""
    words = [sys.executable, "-m", "bench.logs", "--follow", engine.host, "--folder", str(folder), *ids]
    process = subprocess.Popen(words)
    try:
        yield [process.pid]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def theirs(engine: PrivateEngine, ids: Sequence[str], folder: Path) -> Iterator[list[int]]:
    """Follow with `docker logs -f`, a process for each container."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "DOCKER_HOST": engine.host}
    with ExitStack() as stack:
        pids = []
        for container_id in ids:
            file = stack.enter_context((folder / f"{container_id}.log").open("wb"))
            words = ["docker", "logs", "-f", "--timestamps", container_id]
            process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
            stack.callback(process.wait)
            stack.callback(process.kill)
            pids.append(process.pid)
        yield pids


def follow(host: str, folder: Path, ids: Sequence[str]) -> None:
    """Be the process that writes."""

    async def body() -> None:
        client, streams = DockerClient(host), EngineStreams(host, "1.41")
        keeper = LogKeeper(client, streams, folder / "cursors")
        async with asyncio.TaskGroup() as group:
            keeper.bind(group)
            for container_id in ids:
                keeper.follow(container_id, str(folder / f"{container_id}.log"), tty=False)

    asyncio.run(body())


def grown(folder: Path, ids: Sequence[str]) -> int:
    """Return how many lines were written so far."""
    contents = ((folder / f"{i}.log").read_bytes() for i in ids if (folder / f"{i}.log").exists())
    return sum(content.count(b"\n") for content in contents)


def lag(folder: Path, ids: Sequence[str]) -> float:
    """Return how old the newest line of the slowest container is."""
    newest = []
    for container_id in ids:
        path = folder / f"{container_id}.log"
        last = path.read_bytes()[-400:].split(b"\n")[-2:-1] if path.exists() else []
        stamp = last[0].split(b" ")[0].decode() if last else "1970-01-01T00:00:00.000000000Z"
        newest.append(_seconds(stamp))
    return time.time() - min(newest)


def _seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp[:26] + "+00:00").timestamp()


def phase(engine: PrivateEngine, pids: Sequence[int], folder: Path, ids: Sequence[str]) -> Phase:
    """Wait until a side has caught up, and measure it."""
    deadline = time.monotonic() + 120
    time.sleep(SETTLE_SECONDS)
    while lag(folder, ids) > LAG_BAR_SECONDS and time.monotonic() < deadline:
        time.sleep(0.5)
    ticks = os.sysconf("SC_CLK_TCK")
    before = sum(map(cpu_ticks, pids)), cpu_ticks(engine.pid), grown(folder, ids)
    time.sleep(SECONDS)
    cpu, engine_cpu = sum(map(cpu_ticks, pids)) - before[0], cpu_ticks(engine.pid) - before[1]
    behind = lag(folder, ids)
    lines = grown(folder, ids) - before[2]
    return Phase(cpu / ticks, engine_cpu / ticks, lines * (len(_LINE) + 1) / 1e6, lines, behind)


def measure(containers: int, lines_per_second: int, rounds: int) -> tuple[list[Phase], list[Phase]]:
    """Return our phases and theirs, taken in turn."""
    folder = Path(tempfile.mkdtemp(prefix="tlogs"))
    mine: list[Phase] = []
    others: list[Phase] = []
    try:
        with private_engine() as engine:
            ids = start(engine, containers, lines_per_second)
            for number in range(rounds):
                for side, found, name in ((ours, mine, "ours"), (theirs, others, "theirs")):
                    place = folder / f"{name}{number}"
                    with side(engine, ids, place) as pids:
                        found.append(phase(engine, pids, place, ids))
                    shutil.rmtree(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return mine, others


def run(
    containers: int = CONTAINERS, lines_per_second: int = LINES_PER_SECOND, rounds: int = ROUNDS
) -> Result:
    """Measure on an engine of our own."""
    mine, others = measure(containers, lines_per_second, rounds)
    each, their_each = (percentile([p.each for p in side], 50) for side in (mine, others))
    engine, their_engine = (percentile([p.engine_cpu / SECONDS for p in side], 50) for side in (mine, others))
    lags = [max(p.lag_seconds for p in side) for side in (mine, others)]
    peer = "docker logs -f"
    rows = [
        Row("CPU for each MB, p50", each, "ms", peer, their_each),
        Row("CPU", statistics.median(p.cpu / SECONDS for p in mine), "cores", peer,
            statistics.median(p.cpu / SECONDS for p in others)),
        Row("CPU of the engine meanwhile", engine, "cores", peer, their_engine),
        Row("lines written in a second", statistics.median(p.lines / SECONDS for p in mine), "", peer,
            statistics.median(p.lines / SECONDS for p in others)),
        Row("lag of the slowest container, its own included", lags[0], "s", peer, lags[1]),
    ]  # fmt: skip
    return Result(
        rows,
        [
            Bar("CPU for each MB, of docker logs -f's", each / their_each, 1.0, "x"),
            Bar("lag of the slowest container", lags[0], LAG_BAR_SECONDS, "s"),
        ],
        [
            f"{containers} containers, {lines_per_second} lines a second each, {rounds} rounds in turn",
            f"the machine's load average was {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        ],
    )


def main() -> int:
    """Run with other numbers than the usual ones, or be the process that writes."""
    parser = argparse.ArgumentParser(prog="python -m bench.logs", description=__doc__)
    parser.add_argument("--containers", type=int, default=CONTAINERS)
    parser.add_argument("--lines", type=int, default=LINES_PER_SECOND, help="lines a second of each")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--follow", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)
    parser.add_argument("ids", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        follow(options.follow, options.folder, options.ids)
        return 0
    result = run(options.containers, options.lines, options.rounds)
    print(table("logs", result))
    return int(not result.held)


if __name__ == "__main__":
    sys.exit(main())
