"""Cgroups that vanish while they are read, move, lose a controller, and come and go by the hundred."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.cadvisor.adapters import cgroupfs
from services.cadvisor.adapters.cgroupfs import CgroupReader
from services.cadvisor.core.exposition import render
from services.cadvisor.core.model import NO_CPU, NO_MEMORY, CgroupLayout, Snapshot, Stats
from services.cadvisor.loops.names import Names
from services.cadvisor.loops.sampling import Sampler
from services.common.clock import SystemClock
from tests.lab.cadvisor import NOW, FakeNames, cgroup
from tests.matrix.cadvisor import CGROUPS, CONTROLLERS, Cgroup

pytestmark = pytest.mark.netns
CHURN = 60


@pytest.fixture
def reader() -> Iterator[CgroupReader]:
    """Read this machine."""
    made = CgroupReader(CGROUPS, Path("/proc"))
    yield made
    made.close()


@pytest.fixture
def parent() -> str:
    """Return a name under which no other test makes cgroups."""
    return f"tripod-fault-{secrets.token_hex(4)}"


def look(reader: CgroupReader) -> dict[str, Stats]:
    """Look as the sampler does."""
    reader.discover()
    return dict(reader.sample().containers)


def open_below(container_id: str) -> list[str]:
    """List this process's open files of a container."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if container_id in target:
            found.append(target)
    return found


def empty_and_remove(place: Path, root: Path) -> None:
    """Move the processes of a cgroup to the root, those too that they start meanwhile, and remove it."""
    deadline = time.monotonic() + 10
    while place.exists():
        assert time.monotonic() < deadline, f"{place} stays busy"
        with suppress(OSError):  # A process may have ended, or another have been started.
            for pid in (place / "cgroup.procs").read_text().split():
                (root / "cgroup.procs").write_text(pid)
            place.rmdir()


@pytest.mark.fault("F45")
def test_a_cgroup_that_vanishes_between_finding_and_reading_is_missing(
    reader: CgroupReader, parent: str
) -> None:
    """It is not told as one that used nothing; the next look closes its files."""
    with cgroup(parent) as made:
        before = look(reader)[made.id]
    sample = reader.sample()
    reader.discover()

    assert before.processes.processes >= 1
    assert made.id not in sample.containers
    assert not open_below(made.id)
    assert made.id not in render(Snapshot(NOW, sample.machine, tuple(sample.containers.values())))


@pytest.mark.fault("F45")
def test_the_same_name_made_again_is_a_new_container(reader: CgroupReader, parent: str) -> None:
    """Its counters begin anew, and so does its start time."""
    made = Cgroup(parent)
    made.make()
    try:
        first = look(reader)[made.id]
        made.remove()
        made.make()
        reader.sample()
        second = look(reader)[made.id]
    finally:
        made.remove()

    assert first.identity.created is not None
    assert second.identity.created is not None
    assert second.identity.created > first.identity.created


@pytest.mark.fault("F45")
def test_a_cgroup_that_moved_is_followed(reader: CgroupReader, parent: str) -> None:
    """One id under another path is opened there, and nothing of the old place stays open."""
    made, moved = Cgroup(f"{parent}-a"), Cgroup(f"{parent}-b")
    moved.id = made.id
    moved._places = [place.parent.parent / f"{parent}-b" / made.id for place in made._places]
    made.make()
    try:
        first = look(reader)[made.id]
    finally:
        made.remove()
    moved.make()
    try:
        second = look(reader)[made.id]
        opened = open_below(made.id)
    finally:
        moved.remove()

    assert (first.identity.path, second.identity.path) == (f"/{parent}-a/{made.id}", f"/{parent}-b/{made.id}")
    assert opened
    assert all(f"{parent}-b" in path for path in opened)


@pytest.mark.fault("F45")
def test_a_controller_that_goes_under_a_living_cgroup_ends_alone(reader: CgroupReader, parent: str) -> None:
    """One sample is missing, then the others go on; no counter of it says 0."""
    if reader.layout is CgroupLayout.V2:
        pytest.skip("each controller has a tree of its own on cgroup v1 alone")
    with cgroup(parent) as made:
        whole = look(reader)[made.id]
        for name in CONTROLLERS:
            place = CGROUPS / name / parent / made.id
            if "cpu" in name and place.exists():
                empty_and_remove(place, CGROUPS / name)
        between = reader.sample().containers.get(made.id)
        after = look(reader)[made.id]

    assert whole.cpu is not NO_CPU
    assert between is None
    assert after.cpu is NO_CPU
    assert after.memory is not NO_MEMORY
    assert after.memory.limit == whole.memory.limit


def test_a_cgroup_that_is_found_half_made_is_read_whole_later(reader: CgroupReader, parent: str) -> None:
    """A runtime makes it in one tree after the other; who looks in between sees only some."""
    if reader.layout is CgroupLayout.V2:
        pytest.skip("there is one tree on cgroup v2")
    made = Cgroup(parent)
    late = [place for place in made._places if "cpu" in place.parent.parent.name]
    made._places = [place for place in made._places if place not in late]
    made.make()
    try:
        half = look(reader)[made.id]
        for place in late:
            place.mkdir(parents=True)
        whole = look(reader)[made.id]
    finally:
        made._places += late
        made.remove()

    assert half.cpu is NO_CPU
    assert half.memory is not NO_MEMORY
    assert whole.cpu is not NO_CPU


def test_who_does_nothing_is_read_less_and_who_does_something_is_read_whole(
    reader: CgroupReader, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sleeper costs few reads a look but for each tenth; work shows in the very next one."""
    counted: list[int] = []
    real = cgroupfs._pread

    def counting(descriptor: int) -> bytes | None:
        counted.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(cgroupfs, "_pread", counting)
    made = Cgroup(parent)
    made.make()
    try:
        # Past the looks at a starting container, and what its program does at its start.
        deadline = time.monotonic() + 10
        before, group = look(reader)[made.id], reader._groups[made.id]
        worked = time.monotonic()
        while time.monotonic() < min(worked + 0.5, deadline):
            before = look(reader)[made.id]
            worked = worked if group.calm else time.monotonic()
        mine = {file.descriptor for part in group.all_parts() for file in part.files}
        reads = []
        for _ in range(10):
            counted.clear()
            look(reader)
            reads.append(sum(descriptor in mine for descriptor in counted))
        with subprocess.Popen(
            ["sh", "-c", "read x; i=0; while [ $i -lt 99999 ]; do i=$((i+1)); done; read x"],
            stdin=subprocess.PIPE,
        ) as worker:
            for place in made._places:
                (place / "cgroup.procs").write_text(str(worker.pid))
            look(reader)
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.flush()
            deadline = time.monotonic() + 10
            after = look(reader)[made.id]
            count = (before.processes.threads or 0) + 1
            while time.monotonic() < deadline and (
                after.cpu.usage_ns <= before.cpu.usage_ns or after.processes.threads != count
            ):
                after = look(reader)[made.id]
            worker.kill()
    finally:
        made.remove()

    assert max(reads) == len(mine)
    assert min(reads) < len(mine) / 2
    assert after.cpu.usage_ns > before.cpu.usage_ns
    assert after.processes.threads == count


@pytest.mark.fault("F45")
@pytest.mark.asyncio
async def test_containers_that_come_and_go_by_the_hundred_leave_nothing(
    reader: CgroupReader, parent: str
) -> None:
    """No counter of anyone falls, no sample fails, the bystander is in each, no file stays open."""
    made = [Cgroup(parent) for _ in range(CHURN)]
    done, looked = threading.Event(), threading.Event()

    def churn() -> None:
        # Every other one lives through a whole look, the rest come and go amid one.
        for number, one in enumerate(made):
            one.make()
            for _ in range(2 if number % 2 else 0):
                looked.clear()
                looked.wait(10)
            one.remove()
        done.set()

    names = FakeNames()
    names.answer.set()
    sampler = Sampler(reader, Names(names, SystemClock()), SystemClock(), history=5)
    with cgroup(parent) as bystander:
        worker = threading.Thread(target=churn)
        worker.start()
        usage: dict[str, int] = {}
        async with asyncio.timeout(60):
            while not done.is_set():
                snapshot = await sampler.sample()
                looked.set()
                found = {stats.identity.id: stats for stats in snapshot.containers}
                # It sleeps, and what it used before it came here is not charged.
                assert found[bystander.id].cpu is not NO_CPU
                for key in found.keys() & {bystander.id, *(one.id for one in made)}:
                    if found[key].cpu is not NO_CPU:
                        assert found[key].cpu.usage_ns >= usage.get(key, 0)
                        usage[key] = found[key].cpu.usage_ns
        await asyncio.to_thread(worker.join)
        last = await sampler.sample()

    assert len(usage) > 1
    assert not {stats.identity.id for stats in last.containers} & {one.id for one in made}
    assert not [path for one in made for path in open_below(one.id)]
