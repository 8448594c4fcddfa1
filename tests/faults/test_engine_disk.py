"""A pod fills the disk of the engine: the node says so, and nobody innocent is disturbed."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

from tests.lab.node import Node, node, pod

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
DISK_BYTES = 256 << 20
COUNTER = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.2; done"
FILL = "cat /dev/zero > /fill; sync; sleep 1000000"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a small file system of its own."""
    folder = tmp_path_factory.mktemp("disk")
    image, mount = folder / "image", folder / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], capture_output=True, check=False)
    if made.returncode == 0:
        made = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"needs loop devices and ext4: {made.stderr.decode()}")
    yield mount
    subprocess.run(["umount", "-l", mount], capture_output=True, check=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(disk: Path) -> AsyncIterator[Node]:
    """Run a node whose engine has a small disk, with a pod that counts aloud."""
    async with node(data_root=disk / "docker") as made:
        await made.apply(pod("counter", "sh", "-c", COUNTER))
        await made.ready("counter")
        yield made


async def _count(made: Node) -> int:
    lines = await made.logs("counter")
    return int(lines[-1]) if lines else -1


@pytest.mark.fault("F16")
async def test_a_full_engine_disk_is_told_and_disturbs_nobody(small: Node, disk: Path) -> None:
    """DiskPressure on the node; the innocent runs on; a new pod says why it waits; space brings all back."""
    before = (await small.snapshot())["counter/app"]
    await small.apply(pod("greedy", "sh", "-c", FILL))

    message = await small.condition("DiskPressure", holds=True, seconds=60)
    ready = (await small.conditions())["Ready"]
    await small.until(lambda: _is_full(disk), "the disk is full")
    await small.apply(pod("late"))
    waits = await _refusal(small, "late")
    await small.delete("greedy")
    await small.gone("greedy")
    counted = await _count(small)

    assert "engine" in message
    assert ready.status == pod_pb.CONDITION_STATUS_TRUE
    assert "no space left" in waits
    await small.condition("DiskPressure", holds=False, seconds=60)
    await small.ready("late")

    async def counts_on() -> bool:
        return await _count(small) > counted + 10

    await small.until(counts_on, "the log goes on")
    assert (await small.snapshot())["counter/app"] == before
    await small.delete("late")
    await small.gone("late")
    await small.clean()


async def _is_full(disk: Path) -> bool:
    found = await asyncio.to_thread(subprocess.check_output, ["stat", "-f", "-c", "%a", str(disk)])
    return int(found) < 64


async def _refusal(made: Node, name: str) -> str:
    """Return why a pod does not start, as its events or its container tell."""
    told: list[str] = []

    async def holds() -> bool:
        events = [event for event in await made.events(name) if event.type == pod_pb.EVENT_TYPE_WARNING]
        told[:] = [event.message for event in events]
        return bool(told)

    await made.until(holds, f"{name} is refused")
    assert not (await made.pods())[name].ready
    return " ".join(told)
