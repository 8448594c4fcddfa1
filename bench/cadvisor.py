"""cAdvisor at 110 containers: what a sample and a page cost, beside reading the same files alone.

Bars: a sample with all that is made of it takes at most `RATIO` times the CPU of nothing but `os.pread` of
the same files, at p50: reading is the kernel's part, so finding, parsing, rates and names together may
cost twice that again. The containers sleep, and are read as if they worked. A page takes at most 40 ms of
CPU, once a second at most however many ask. The process takes at most 0.15 of a core and 200 MiB while it
is scraped each second.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.idle import Use, watch
from bench.report import Bar, Result, Row, percentile
from services.cadvisor.adapters.cgroupfs import CgroupReader
from services.cadvisor.core import cgroup_v1, cgroup_v2, exposition
from services.cadvisor.core.model import CgroupLayout, Identity, Snapshot
from services.cadvisor.loops.names import Names
from services.cadvisor.loops.sampling import Sampler
from services.cadvisor.ports import Sample
from services.common.clock import SystemClock
from tests.matrix.process import Service, until

CONTAINERS = 110
ROUNDS = 40
SECONDS = 15.0
RATIO = 3.0
PAGE_BAR_MS = 40.0
CPU_BAR_CORES = 0.15
RSS_BAR_MIB = 200.0
CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "cpuacct", "pids", "blkio", "cpu")


class Nameless:
    """Knows a pod for every container."""

    def __init__(self, ids: list[str]) -> None:
        self._found = {
            name: Identity("", name, "app", f"pod-{number}", "default", f"uid-{number}", "image:1")
            for number, name in enumerate(ids)
        }

    async def identities(self) -> Mapping[str, Identity]:
        """Return them."""
        return self._found


@contextmanager
def containers(count: int) -> Iterator[list[str]]:
    """Make containers' cgroups for a block, a sleeping process in each."""
    parent = f"tripod-bench-{secrets.token_hex(4)}"
    roots = [CGROUPS / name for name in _CONTROLLERS if (CGROUPS / name / "cgroup.procs").exists()]
    ids = [secrets.token_hex(32) for _ in range(count)]
    places = [root / parent / name for root in roots or [CGROUPS] for name in ids]
    sleepers: list[subprocess.Popen[bytes]] = []
    try:
        for place in places:
            place.mkdir(parents=True)
        sleepers += [subprocess.Popen(["sleep", "3600"]) for _ in ids]
        for number, place in enumerate(places):
            (place / "cgroup.procs").write_text(str(sleepers[number % count].pid))
        yield ids
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
        for place in {*places, *(place.parent for place in places)}:
            _remove(place)
        for root in roots or [CGROUPS]:
            _remove(root / parent)


def _remove(place: Path) -> None:
    deadline = time.monotonic() + 5
    while place.exists() and time.monotonic() < deadline:
        try:
            place.rmdir()
        except OSError:  # Busy until its processes are reaped, or its children are gone.
            if any(child.is_dir() for child in place.iterdir()):
                return


@dataclass(slots=True)
class Times:
    """Milliseconds of each round: of the wall's clock, and of CPU, which others do not disturb."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Time a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall.append((time.perf_counter() - wall) * 1000)
        self.cpu.append((time.process_time() - cpu) * 1000)


def timed(act: Callable[[], object]) -> Times:
    """Time an act again and again."""
    found = Times()
    for _ in range(ROUNDS):
        with found.round():
            act()
    return found


def floor(snapshot: Snapshot, layout: CgroupLayout) -> Times:
    """Read the same files with nothing around: all that is to be had from the kernel."""
    v2 = layout is CgroupLayout.V2
    places = {"": (*cgroup_v2.FILES, "cgroup.procs")} if v2 else {**cgroup_v1.FILES}
    opened = []
    for stats in (snapshot.machine, *snapshot.containers):
        for controller, names in places.items():
            listing = ("cgroup.procs",) if controller == "memory" else ()
            for name in (*names, *listing):
                path = CGROUPS / controller / stats.identity.path.lstrip("/") / name
                with suppress(OSError, IndexError):
                    opened.append(os.open(path, os.O_RDONLY))
                    if name == "cgroup.procs" and stats.identity.id:
                        pid = os.pread(opened[-1], 4096, 0).split()[0].decode()
                        opened.append(os.open(f"/proc/{pid}/net/dev", os.O_RDONLY))
    try:
        return timed(lambda: [_read(descriptor) for descriptor in opened])
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _read(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, 65_536, 0)
    except OSError:  # Others' containers come and go.
        return b""


class Busy(CgroupReader):
    """Reads every file each time, as if all containers worked; these sleep."""

    def sample(self, *, whole: bool = True) -> Sample:
        """Read everything."""
        return super().sample(whole=whole)


async def in_process(ids: list[str], reader: CgroupReader) -> tuple[Times, Times, Times, bytes]:
    """Measure samples, the floor, and pages, in this process."""
    names = Names(Nameless(ids), SystemClock())
    sampler = Sampler(reader, names, SystemClock(), history=120)
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(names.run())
        await sampler.sample()
        samples = Times()
        for _ in range(ROUNDS):
            with samples.round():
                snapshot = await sampler.sample()
        bare = floor(snapshot, reader.layout)
        pages = timed(lambda: exposition.render(snapshot).encode())
        asking.cancel()
    page = exposition.render(snapshot).encode()
    reader.close()
    return samples, bare, pages, page


async def scraped(folder: Path) -> tuple[Use, float]:
    """Run the service and scrape it each second; returns its use and the median time of a scrape."""
    service = Service("cadvisor", folder, {"TRIPOD_RUN_DIRECTORY": str(folder / "run")})
    took: list[float] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(service.kill)
        await service.start()
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def scrape() -> bool:
            url = f"http://127.0.0.1:{_port(service)}/metrics"
            begin = time.perf_counter()
            try:
                async with session.get(url, headers={"Accept-Encoding": "gzip"}) as answer:
                    await answer.read()
                    took.append((time.perf_counter() - begin) * 1000)
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await until(scrape, "cAdvisor is scraped", 30.0)
        await asyncio.sleep(3)
        took.clear()
        async with asyncio.TaskGroup() as group:

            async def scraper() -> None:
                while True:
                    await scrape()
                    await asyncio.sleep(1)

            asking = group.create_task(scraper())
            _, found = await watch({"cadvisor": service.pid}, SECONDS)
            asking.cancel()
    return found["cadvisor"], percentile(took, 50)


def _port(service: Service) -> int:
    """Read where the pages are served from the service's log."""
    for line in service.log.read_text().splitlines():
        if '"Started HTTP server"' in line:
            return int(line.partition("127.0.0.1:")[2].partition('"')[0])
    return 1


def run() -> Result:
    """Measure."""
    folder = Path(tempfile.mkdtemp(prefix="tbench"))
    try:
        with containers(CONTAINERS) as ids:
            idle, *_ = asyncio.run(in_process(ids, CgroupReader(CGROUPS, Path("/proc"))))
            samples, bare, pages, page = asyncio.run(in_process(ids, Busy(CGROUPS, Path("/proc"))))
            use, scrape = asyncio.run(scraped(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sample, base, render = (percentile(times.cpu, 50) for times in (samples, bare, pages))
    return Result(
        rows=[
            Row("sample, CPU, p50", sample, "ms", "bare pread", base),
            Row("sample, p50", percentile(samples.wall, 50), "ms", "bare pread", percentile(bare.wall, 50)),
            Row("sample, p99", percentile(samples.wall, 99), "ms", "bare pread", percentile(bare.wall, 99)),
            Row("sample of idle containers, CPU, p50", percentile(idle.cpu, 50), "ms", "bare pread", base),
            Row("render a page, CPU, p50", render, "ms", "bare pread", base),
            Row("page", len(page) / 1024, "KiB"),
            Row("page, gzip", len(gzip.compress(page, 1)) / 1024, "KiB"),
            Row("scrape over HTTP, p50", scrape, "ms"),
            Row("CPU while scraped each second", use.cores, "cores"),
            Row("RSS", use.rss_mib, "MiB"),
        ],
        bars=[
            Bar("sample to bare pread, CPU, p50", sample / base, RATIO, "x"),
            Bar("render a page, CPU, p50", render, PAGE_BAR_MS, "ms"),
            Bar("CPU", use.cores, CPU_BAR_CORES, "cores"),
            Bar("RSS", use.rss_mib, RSS_BAR_MIB, "MiB"),
        ],
        notes=[
            f"{CONTAINERS} containers' cgroups and those of the host",
            "of containers that use no processor most files are read in one look of ten; the service does so",
        ],
    )
