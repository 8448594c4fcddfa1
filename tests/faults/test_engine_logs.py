"""Log floods: bounded on disk and in memory, and no line is lost to a rotation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.kubelet.core import logs
from services.kubelet.core.logs import LogEntry
from tests.lab.node import Node, node, pod

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
MEBIBYTE = 1 << 20
FILES = 3
# A second of the flood may go into a file between two looks, on a busy machine several.
MOST_BYTES = FILES * 8 * MEBIBYTE
PART_BYTES = 16_384
SETTINGS = {"TRIPOD_CONTAINER_LOG_MAX_MEBIBYTES": "1", "TRIPOD_CONTAINER_LOG_MAX_FILES": str(FILES)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flooded() -> AsyncIterator[Node]:
    """Run a node that rotates at one mebibyte."""
    async with node(settings=SETTINGS) as made:
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def tidy(flooded: Node) -> AsyncIterator[None]:
    """See that nothing is left."""
    yield
    await flooded.delete_all()


def _files(made: Node, name: str) -> list[Path]:
    found = (made.state / "pod-logs").glob(f"default_{name}_*/app/*.log*")
    # The one that is written has the shortest name, and comes last.
    return sorted(
        found, key=lambda path: (path.name.count("."), path.name) if path.suffix != ".log" else (9, "")
    )


def _entries(made: Node, name: str) -> Iterator[LogEntry]:
    for path in _files(made, name):
        for line in path.read_bytes().split(b"\n")[:-1]:
            entry = logs.parse(line)
            assert entry is not None, line[:80]
            yield entry


def _lines(made: Node, name: str) -> list[bytes]:
    text = b"".join(entry.line + (b"" if entry.partial else b"\n") for entry in _entries(made, name))
    return text.split(b"\n")[:-1]


_CALM_SECONDS = 2.0


async def _settled(made: Node, name: str) -> None:
    """Wait until a pod has ended and its log grows no more: an engine may tell the last part late."""
    loop, size, since = asyncio.get_running_loop(), -1, 0.0

    async def holds() -> bool:
        nonlocal size, since
        found = (await made.pods()).get(name)
        ended = found is not None and found.containers[0].state.HasField("exit_code")
        now = sum(path.stat().st_size for path in _files(made, name))
        if now != size or not ended:
            size, since = now, loop.time()
        return loop.time() - since > _CALM_SECONDS

    await made.until(holds, f"the log of {name} is whole")


@pytest.mark.fault("F37")
async def test_rotation_loses_no_line_and_doubles_none(flooded: Node) -> None:
    """Through rotations and a kill in the middle of one, every line stands once, in order."""
    await flooded.service.terminate()
    await flooded.start("pod.log.rotate.after=1*kill->off")
    count = 45_000
    program = (
        f"i=0; while [ $i -lt {count} ]; do echo line $i of a log that is rotated; i=$((i+1)); "
        "if [ $((i % 200)) -eq 0 ]; then sleep 0.03; fi; done; sleep 3"
    )

    await flooded.apply(pod("counter", "sh", "-c", program, policy="Never"))
    await _settled(flooded, "counter")

    lines = await asyncio.to_thread(_lines, flooded, "counter")
    assert flooded.service.killed_itself or flooded.service.lives > 2
    assert 2 <= len(_files(flooded, "counter")) <= FILES
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], count))


@pytest.mark.fault("F37")
async def test_a_flood_is_bounded_on_disk_and_in_memory(flooded: Node) -> None:
    """`yes` for a while: few files, none large, the kubelet no larger, and another pod starts meanwhile."""
    before = (await flooded.audit()).process.resident_bytes
    await flooded.apply(pod("flood", "yes", "a line of some length that says nothing at all"))
    await flooded.ready("flood")
    seen: list[tuple[int, int]] = []

    async def rotated_often() -> bool:
        sizes = [path.stat().st_size for path in _files(flooded, "flood") if path.exists()]
        seen.append((len(sizes), sum(sizes)))
        names = {path.name for path in _files(flooded, "flood")}
        rotations.update(names)
        return len(rotations) >= FILES + 3

    rotations: set[str] = set()
    await flooded.until(rotated_often, "it was rotated a few times", 60)
    await flooded.apply(pod("meanwhile"))
    await flooded.ready("meanwhile")
    grown = (await flooded.audit()).process.resident_bytes - before

    assert max(count for count, _ in seen) <= FILES + 1
    assert max(size for _, size in seen) < MOST_BYTES
    assert grown < 48 * MEBIBYTE
    assert all(len(entry.line) <= PART_BYTES for entry in _entries(flooded, "flood"))


@pytest.mark.fault("F37")
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        pytest.param("dd if=/dev/zero bs=1000000 count=2", b"\0" * 2_000_000, id="NUL bytes, no line feed"),
        pytest.param(
            r"i=0; while [ $i -lt 99 ]; do printf '\377\376\300'; i=$((i+1)); done",
            b"\xff\xfe\xc0" * 99,
            id="no UTF-8",
        ),
        pytest.param("yes | head -c 1900000 | tr -d '\\n'", b"y" * 950_000, id="one line of a million"),
    ],
)
async def test_what_is_no_text_is_kept_as_it_is(
    flooded: Node, program: str, expected: bytes, *, tty: bool
) -> None:
    """Every byte stands in the log, in parts that say so and are no longer than 16 KiB."""
    program = f"{{ {program}; }} 2>/dev/null; sleep 2"
    await flooded.apply(pod("odd", "sh", "-c", program, policy="Never", container={"tty": tty}))
    await _settled(flooded, "odd")

    entries = await asyncio.to_thread(lambda: list(_entries(flooded, "odd")))
    assert max(len(entry.line) for entry in entries) <= PART_BYTES
    assert b"".join(entry.line for entry in entries) == expected
    assert all(entry.partial for entry in entries[:-1])
