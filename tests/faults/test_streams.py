"""Clients that open streams and read nothing, and clients that open and reset thousands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from services.common import process
from services.common.grpcclient import call, open_channel, stream
from services.common.grpcserver import GrpcServer, Limits, Listener, Servicer, build_server
from services.common.watch import Bookmark, Deleted, WatchHub
from tests.fakes.cri_server import FakeCri
from tests.lab.kubelet import FaultyNode, faulty_node
from tests.lab.rawhttp2 import RawConnection
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAME = "tripod.kubelet.v1.PodService"
PAYLOAD = "x" * 65_536
STUCK = 20


class Pods(pb_grpc.PodServiceServicer):
    """Watches of a hub, and how many there are."""

    def __init__(self) -> None:
        self.hub: WatchHub[pb.Pod] = WatchHub("run", queue=64)
        self.watchers = 0

    async def ListPods(self, request: pb.ListPodsRequest, context: Any) -> pb.ListPodsResponse:
        """Answer."""
        return pb.ListPodsResponse()

    async def WatchPods(
        self, request: pb.WatchPodsRequest, context: Any
    ) -> AsyncIterator[pb.WatchPodsResponse]:
        """Stream the hub."""
        self.watchers += 1
        try:
            async for change in self.hub.watch():
                if not isinstance(change, Bookmark | Deleted):
                    yield pb.WatchPodsResponse(revision=change.revision, pod_upserted=change.value)
        finally:
            self.watchers -= 1


@asynccontextmanager
async def serving(pods: Pods, path: Path, stalled_seconds: float) -> AsyncIterator[GrpcServer]:
    """Serve."""
    server = build_server(
        [Servicer(NAME, lambda s: pb_grpc.add_PodServiceServicer_to_server(pods, s))],
        listeners=[Listener(f"unix://{path}")],
        limits=Limits(stalled_watch_seconds=stalled_seconds),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0.2)


async def _end(running: Any) -> grpc.StatusCode:
    """Read a stream to its end; return how it ended."""
    try:
        async for _ in running:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.fault("F29")
@pytest.mark.process
async def test_watchers_that_read_nothing_are_cut_and_nobody_else_notices(tmp_path: Path) -> None:
    """Each stuck reader is cut after the stall limit; one that reads gets everything; memory stays."""
    pods = Pods()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    async with serving(pods, tmp_path / "s", 1.0) as server, asyncio.timeout(40):
        async with open_channel(server.addresses[0]) as channel, open_channel(server.addresses[0]) as other:
            stuck_stub, stub = pb_grpc.PodServiceStub(channel), pb_grpc.PodServiceStub(other)
            stuck = [stuck_stub.WatchPods(pb.WatchPodsRequest()) for _ in range(STUCK)]
            before = process.use().resident_bytes
            async with stream(stub.WatchPods, pb.WatchPodsRequest()) as answers:
                await until(lambda: pods.watchers >= STUCK)
                most, seen = 0, 0
                while pods.watchers > 1 or seen < 300:
                    pods.hub.upsert("pod", pb.Pod(name="pod", message=PAYLOAD))
                    seen = (await anext(answers)).revision
                    await call(stub.ListPods, pb.ListPodsRequest(), deadline_seconds=5)
                    most = max(most, process.use().resident_bytes - before)
            codes = {await _end(running) for running in stuck}

    assert codes == {grpc.StatusCode.ABORTED}
    assert seen >= 300
    # What is in flight for each reader is bounded by the transport: a few MiB, however much is told.
    assert most < STUCK * (8 << 20)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FaultyNode]:
    """A kubelet as a process, which answers."""
    fake = FakeCri()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    async with faulty_node(tmp_path_factory.mktemp("n"), fake) as made:
        await made.world.pods()
        yield made


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def _victim(node: FaultyNode, stop: asyncio.Event) -> list[float]:
    """List pods again and again; return how long each took."""
    loop = asyncio.get_running_loop()
    took: list[float] = []
    stub = pb_grpc.PodServiceStub(node.world.channel)
    while not stop.is_set() or not took:
        begin = loop.time()
        await call(stub.ListPods, pb.ListPodsRequest(), deadline_seconds=10)
        took.append(loop.time() - begin)
    return took


async def _rapid_reset(connection: RawConnection) -> None:
    """Open 20,000 calls and reset each at once."""
    for _ in range(200):
        for _ in range(100):
            connection.open(f"/{NAME}/ListPods", reset=True)
        await connection.flush()


async def _storm(connection: RawConnection) -> None:
    """Open 2,000 calls that never send their request."""
    for _ in range(20):
        for _ in range(100):
            connection.open(f"/{NAME}/ListPods")
        await connection.flush()


async def _pings(connection: RawConnection) -> None:
    """Send 20,000 pings and read none of the answers."""
    for _ in range(200):
        for _ in range(100):
            connection.ping()
        await connection.flush()


@pytest.mark.fault("F30")
async def test_our_own_frames_are_understood(node: FaultyNode) -> None:
    """Else the floods below would prove nothing."""
    async with asyncio.timeout(10), RawConnection(node.world.folder / "run/kubelet.sock") as connection:
        connection.open(f"/{NAME}/ListPods", message=b"")
        await connection.flush()
        answer = await connection.read_until(b"grpc-status")

    assert b"application/grpc" in answer


@pytest.mark.fault("F30")
@pytest.mark.parametrize("attack", [_rapid_reset, _storm, _pings], ids=["rapid-reset", "storm", "pings"])
async def test_a_flood_of_frames_leaves_others_served_and_memory_bounded(
    node: FaultyNode, attack: Any
) -> None:
    """Every call of a victim is answered meanwhile and afterwards, by the same process."""
    pid = node.world.service.pid
    before, stop = resident_bytes(pid), asyncio.Event()
    socket = node.world.folder / "run/kubelet.sock"
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        victim = group.create_task(_victim(node, stop))
        # The server may hang up on whoever behaves so; that is as good an end.
        async with RawConnection(socket) as connection:
            await attack(connection)
        stop.set()
    took = sorted(victim.result())
    await node.world.pods()

    assert node.world.service.pid == pid
    assert not node.world.service.dead
    assert resident_bytes(pid) - before < 64 << 20
    assert took[-1] < 10
