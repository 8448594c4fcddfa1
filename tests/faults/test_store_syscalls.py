"""The store's file while system calls fail or the process dies in the midst of them.

Each case enumerates: the first call of a kind is broken, then the second, until the
program runs through unharmed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from services.kubelet.objects import schema
from services.kubelet.objects.database import Database
from services.kubelet.objects.store import ObjectStore
from tests.fakes.clock import FakeClock
from tests.lab import store_driver, store_fixtures, strace
from tests.lab.strace import Broken

# Tracing needs root where ptrace is restricted; and `make check` is to stay short.
pytestmark = [
    pytest.mark.skipif(not strace.AVAILABLE, reason="needs strace: apt-get install strace"),
    pytest.mark.netns,
]
CHANGES = 2
BEFORE = {1, 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a file that holds two changes, acknowledged long ago."""
    path = tmp_path_factory.mktemp("prepared") / "db"
    database = Database(path)
    database.open(stamp="never")
    database.settle()
    for number in sorted(BEFORE):
        database.write(store_driver.pair(number), [], number)
    database.close()
    return path


def _at_each_call(
    prepared: Path,
    folder: Path,
    call: str,
    how: str,
    *,
    and_after: bool = False,
    program: Sequence[str] = ("tests.lab.store_driver", str(CHANGES)),
) -> Iterator[tuple[int, Path, Broken]]:
    """Break each call in turn, two at a time; yield what came of it."""
    module, *arguments = program

    def broken(number: int) -> tuple[int, Path, Broken]:
        path = folder / str(number) / "db"
        shutil.copytree(prepared.parent, path.parent)
        found = strace.run_broken(
            module,
            [str(path), *arguments],
            call=call,
            how=how,
            when=f"{number}{'+' * and_after}",
            files=[path.with_name(f"db{suffix}") for suffix in ("", "-wal", ".backup.json.new")],
            log=path.with_name("strace.log"),
        )
        return number, path, found

    with ThreadPoolExecutor(2) as pool:
        for first in count(1, 2):
            for number, path, found in pool.map(broken, (first, first + 1)):
                if not found.hit:
                    assert number > 1, f"{call} was never called"
                    return
                yield number, path, found


def _acknowledged(output: str) -> tuple[set[int], set[int]]:
    """Return the changes that must be there after what a run said, and those that may be: none or one."""
    there = set(BEFORE)
    number = max(BEFORE)
    for words in map(str.split, output.splitlines()):
        if words[0] == "gone":
            number = int(words[-1])
            there = there - {int(words[1])} | {number}
    return there, {number + 1}


def _reopened(path: Path) -> set[int]:
    database = Database(path)
    opened = database.open(stamp="after")
    database.close()
    assert opened.aside == "", f"{opened.lost}: a healthy file was set aside"
    return store_driver.numbers(opened.rows)


@pytest.mark.fault("F1")
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "ftruncate", "unlink", "openat"])
def test_a_kill_at_any_call_loses_and_tears_nothing(prepared: Path, tmp_path: Path, call: str) -> None:
    """SIGKILL before the Nth call: what was acknowledged is there, and each change whole or not at all."""
    killed = 0
    for number, path, broken in _at_each_call(prepared, tmp_path, call, "signal=SIGKILL"):
        assert broken.code in (-9, 137), broken.output
        there, perhaps = _acknowledged(broken.output)
        found = _reopened(path)

        # The change that was under way took its oldest along, if it came through.
        after = there - {min(there)} | perhaps
        assert found in (there, after), f"{call} {number}: {found}, acknowledged {there}"
        killed += 1

    assert killed


@pytest.mark.fault("F1")
@pytest.mark.fault("F19")
@pytest.mark.asyncio
@pytest.mark.parametrize("call", ["rename", "fdatasync", "unlink"])
async def test_a_rebuild_killed_at_any_call_begins_again(tmp_path: Path, call: str) -> None:
    """What is damaged is still there, or all pods are; never an empty store that looks whole."""
    prepared = tmp_path / "prepared/db"
    await asyncio.to_thread(prepared.parent.mkdir)
    await asyncio.to_thread(shutil.copy, store_fixtures.fixture(schema.VERSION), prepared)
    uids = await _pods(prepared)
    await asyncio.to_thread(prepared.write_bytes, b"garbage" * 100)
    program = ("tests.lab.rebuild_driver",)
    for _, path, broken in _at_each_call(prepared, tmp_path, call, "signal=SIGKILL", program=program):
        assert broken.code in (-9, 137)
        assert await _pods(path) == uids


async def _pods(path: Path) -> set[str]:
    store = ObjectStore(path, store_fixtures.RANGES, FakeClock(), run_id="after")
    await store.open()
    await store.close()
    return {pod.uid for pod in store.pods()}


@pytest.mark.fault("F18")
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "pread64", "ftruncate", "openat"])
def test_one_failed_call_is_survived_and_loses_nothing(prepared: Path, tmp_path: Path, call: str) -> None:
    """EIO once: a change is acknowledged or refused, the file is mended, and holds what was said."""
    for number, path, broken in _at_each_call(prepared, tmp_path, call, "error=EIO"):
        there, _ = _acknowledged(broken.output)
        if broken.code == store_driver.UNUSABLE:
            assert broken.output.startswith("unusable Cannot use the object store"), broken.output
        else:
            assert broken.code == 0
        found = _reopened(path)

        assert found == there, f"{call} {number}: {found}, acknowledged {there}"


@pytest.mark.fault("F18")
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_a_disk_that_fails_for_good_keeps_what_was_there(prepared: Path, tmp_path: Path, call: str) -> None:
    """EIO from the Nth call on: nothing is acknowledged any more, and nothing from before is gone."""
    for number, path, broken in _at_each_call(prepared, tmp_path, call, "error=EIO", and_after=True):
        there, perhaps = _acknowledged(broken.output)
        refused = {int(line.split()[1]) for line in broken.output.splitlines() if line.startswith("refused")}
        found = _reopened(path)

        after = there - {min(there)} | (refused or perhaps)
        assert found in (there, after), f"{call} {number}: {found}, acknowledged {there}"
