"""The disk under the log folder is full: nobody stands still, and once there is room the log is whole."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb

from tests.docker.test_cri_server import Server

pytestmark = [pytest.mark.docker, pytest.mark.asyncio, pytest.mark.timeout(180), pytest.mark.fault("F16")]
DISK_BYTES = 256 * 1024
# Each line is told in the container's own file, too, so that its life can be followed without the log.
PROGRAM = """
import time
for number in range({lines}):
    print(f"{{number}} " + "x" * 200, flush=True)
    open("/tmp/count", "w").write(str(number))
    time.sleep(0.002)
time.sleep(100000)
"""
LINES = 3_000


@pytest.fixture
def small(short_path: Path) -> Iterator[Path]:
    """A folder with little room for logs."""
    path = short_path / "logs"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest_asyncio.fixture
async def server(short_path: Path, small: Path) -> AsyncIterator[Server]:
    """Run a server whose logs lie on the small disk."""
    assert small == short_path / "logs"
    made = Server(short_path)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def _open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def _grow(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(path)], check=True)


async def _count(server: Server, container: str) -> int:
    request = pb.ExecSyncRequest(container_id=container, cmd=["cat", "/tmp/count"], timeout=10)
    return int((await server.ask(server.runtime.ExecSync, request)).stdout or 0)


async def test_a_full_log_disk_stops_nobody_and_loses_nothing(
    server: Server, small: Path, image: str
) -> None:
    """The container writes on, the server answers with as many files open, and the rest comes later."""
    box = await server.sandbox()
    talker = await server.container(box, image, PROGRAM.format(lines=LINES))
    open_files = _open_files(server)

    async def done() -> bool:
        return await _count(server, talker) == LINES - 1

    await server.until(done)
    held = server.log()
    assert 0 < len(held) < LINES
    assert (await server.status(talker)).state == pb.CONTAINER_RUNNING
    quiet = await server.container(box, image, "import time; time.sleep(100000)", name="quiet")
    assert (await server.status(quiet)).state == pb.CONTAINER_RUNNING
    assert _open_files(server) <= open_files + 12

    _grow(small)

    async def whole() -> bool:
        return len(server.log()) == LINES

    await server.until(whole)
    assert [line.split(" ")[0] for _, line in server.log()] == [str(number) for number in range(LINES)]
