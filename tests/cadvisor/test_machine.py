"""cAdvisor on this machine's real cgroups, as root; and its service over a real socket."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path

import pytest
from tripod.cadvisor.v1 import stats_service_pb2 as pb
from tripod.cadvisor.v1 import stats_service_pb2_grpc as pb_grpc

from services.cadvisor.adapters import machine
from services.cadvisor.adapters.cgroupfs import CgroupReader
from services.cadvisor.core.model import CgroupLayout, Identity
from services.cadvisor.errors import ReaderClosedError
from services.cadvisor.loops.names import Names
from services.cadvisor.loops.sampling import Sampler
from services.cadvisor.server import StatsServicer
from services.common.clock import SystemClock
from services.common.errors import Code, TripodError
from services.common.grpcclient import call, open_channel, stream
from services.common.grpcserver import Listener, Servicer, build_server

ROOT = Path("/sys/fs/cgroup")
ID = "cd" * 32


@pytest.fixture
def reader() -> Iterator[CgroupReader]:
    """Read this machine."""
    made = CgroupReader(ROOT, Path("/proc"))
    yield made
    made.close()


@pytest.fixture
def cgroup(reader: CgroupReader) -> Iterator[list[Path]]:
    """Make a cgroup of our own in every tree that is read, and remove it."""
    if os.geteuid() != 0:
        pytest.skip("making a cgroup needs root: run `sudo make test`")
    trees = sorted({Path(root) for root, _ in reader._places()})
    made = [tree / f"tripod-test-{os.getpid()}" / ID for tree in trees]
    for path in made:
        path.mkdir(parents=True)
    yield made
    for path in made:
        path.rmdir()
        path.parent.rmdir()


def test_time_burnt_in_a_cgroup_is_seen(reader: CgroupReader, cgroup: list[Path]) -> None:
    """The counters agree with what the process itself says."""
    program = (
        "import time, sys\nsys.stdin.readline()\n"
        "while time.process_time() < 0.3: pass\nprint(time.process_time())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
        for path in cgroup:
            (path / "cgroup.procs").write_text(str(process.pid))
        reader.discover()
        seen = reader.sample().containers[ID]
        told, _ = process.communicate("go\n")
    after = reader.sample().containers[ID]

    assert seen.processes.processes == 1
    assert (after.cpu.usage_ns - seen.cpu.usage_ns) / 1e9 == pytest.approx(float(told), abs=0.1)
    assert after.memory.usage >= after.memory.working_set >= 0


def test_closing_waits_for_a_look_and_later_looks_open_nothing(
    reader: CgroupReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that ends amid a look neither closes a file twice nor another's."""
    walk, amid, go = reader._walk, threading.Event(), threading.Event()

    def slow_walk() -> Iterable[tuple[str, str]]:
        amid.set()
        go.wait(10)
        return walk()

    monkeypatch.setattr(reader, "_walk", slow_walk)
    with ThreadPoolExecutor(2) as pool:
        looked = pool.submit(reader.discover)
        assert amid.wait(10)
        closed = pool.submit(reader.close)
        with pytest.raises(FutureTimeoutError):
            closed.result(0.3)
        go.set()
        looked.result(10)
        closed.result(10)

    assert reader.open_file_count() == 0
    for look in (reader.discover, reader.sample):
        with pytest.raises(ReaderClosedError):
            look()


def test_closing_does_not_wait_for_a_look_that_hangs(
    reader: CgroupReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files stay its own."""
    amid, go = threading.Event(), threading.Event()

    def hanging_walk() -> Iterable[tuple[str, str]]:
        amid.set()
        go.wait(60)
        return ()

    monkeypatch.setattr(reader, "_walk", hanging_walk)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(reader.discover)
        assert amid.wait(10)
        reader.close()
        held = reader.open_file_count()
        go.set()

    assert held > 0


def test_files_of_cgroups_that_went_are_closed(reader: CgroupReader, cgroup: list[Path]) -> None:
    """Two hundred containers come and go, and no file stays open."""
    reader.discover()
    reader.sample()
    before = _open_below(cgroup[0].parent.name)
    for number in range(200):
        name = f"{number:064x}"
        for path in cgroup:
            (path.parent / name).mkdir()
        if number % 20 == 0:
            reader.discover()
            reader.sample()
        for path in cgroup:
            (path.parent / name).rmdir()
    reader.discover()

    assert before > 0
    assert _open_below(cgroup[0].parent.name) == before


def _open_below(name: str) -> int:
    """Count our open files below a folder of that name; the machine's own containers come and go."""
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += f"/{name}/" in str(path.readlink())
    return found


def test_the_machine_has_processors_and_memory(reader: CgroupReader) -> None:
    """And says how its cgroups lie."""
    facts = machine.read(Path("/proc"), reader.layout)

    assert facts.cpu_count >= 1
    assert facts.memory_bytes > 1 << 28
    assert facts.boot_time is not None
    assert facts.layout in CgroupLayout


class NoNames:
    """A runtime that does not answer."""

    async def identities(self) -> Mapping[str, Identity]:
        """Fail."""
        raise TripodError("no runtime", code=Code.UNAVAILABLE, reason="X")


@pytest.mark.asyncio
async def test_snapshots_are_served_over_a_socket(reader: CgroupReader, tmp_path: Path) -> None:
    """List and watch give the same snapshot to every reader; nobody's call samples."""
    sampler = Sampler(reader, Names(NoNames(), SystemClock()), SystemClock(), history=5)
    servicer = StatsServicer(sampler.latest, sampler.watch, machine.read(Path("/proc"), reader.layout))
    name = "tripod.cadvisor.v1.StatsService"
    server = build_server(
        [Servicer(name, lambda s: pb_grpc.add_StatsServiceServicer_to_server(servicer, s))],
        listeners=[Listener(f"unix://{tmp_path}/s")],
    )
    await server.start()
    async with open_channel(server.addresses[0]) as channel, asyncio.timeout(10):
        stub = pb_grpc.StatsServiceStub(channel)
        with pytest.raises(TripodError, match="Nothing has been sampled"):
            await call(stub.ListStats, pb.ListStatsRequest(), deadline_seconds=5)
        await sampler.sample()
        listed = await call(stub.ListStats, pb.ListStatsRequest(), deadline_seconds=5)
        async with stream(stub.WatchStats, pb.WatchStatsRequest()) as answers:
            first = await anext(answers)
            await sampler.sample()
            second = await anext(answers)
    await server.stop(0.1)

    assert listed.snapshot == first.snapshot
    assert second.snapshot.machine.cpu.HasField("usage_nanocores")
    assert second.snapshot.machine.memory.working_set_bytes > 0
