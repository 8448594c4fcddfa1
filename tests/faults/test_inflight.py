"""A client that gave up, or vanished, asks again: it joins the work that is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.errors import Code, RemoteError, TripodError
from services.common.grpcclient import call, open_channel
from services.common.grpcserver import Listener, Servicer, build_server
from services.kubelet.cri.inflight import InFlight
from tests.waiting import until

pytestmark = [pytest.mark.asyncio, pytest.mark.fault("F4")]
NAME = "runtime.v1.RuntimeService"


class Slow(pb_grpc.RuntimeServiceServicer):
    """Makes sandboxes when told to, as our CRI server does."""

    def __init__(self, inflight: InFlight[str]) -> None:
        self.asked = 0
        self.begun = 0
        self.release = asyncio.Event()
        self.fault: Exception | None = None
        self._inflight = inflight

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: Any) -> pb.RunPodSandboxResponse:
        """Make one, or join."""
        self.asked += 1
        made = await self._inflight.join(request.config.metadata.uid, self._make)
        return pb.RunPodSandboxResponse(pod_sandbox_id=made)

    async def has_been_asked(self, times: int) -> None:
        """Wait until so many calls have arrived."""
        await until(lambda: self.asked >= times)

    async def _make(self) -> str:
        self.begun += 1
        number = self.begun
        await self.release.wait()
        if self.fault is not None:
            raise self.fault
        return f"sandbox{number}"


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[Slow, InFlight[str]]]:
    """Serve it; work runs in a group of the server's."""
    inflight: InFlight[str] = InFlight()
    slow = Slow(inflight)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = build_server(
        [Servicer(NAME, lambda s: pb_grpc.add_RuntimeServiceServicer_to_server(slow, s))],
        listeners=[Listener(f"unix://{path}")],
    )
    await server.start()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        inflight.bind(group)
        yield slow, inflight
        slow.release.set()
    await server.stop(0.1)


async def ask(path: Path, seconds: float = 10) -> str:
    """Ask for the sandbox over a connection of its own."""
    request = pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(uid="u")))
    async with open_channel(f"unix://{path}") as channel:
        stub = pb_grpc.RuntimeServiceStub(channel)
        return str((await call(stub.RunPodSandbox, request, deadline_seconds=seconds)).pod_sandbox_id)


async def test_a_client_that_gave_up_joins_when_it_asks_again(tmp_path: Path) -> None:
    """Its deadline stopped nothing, and nothing begins twice."""
    path = tmp_path / "s"
    async with serving(path) as (slow, inflight):
        with pytest.raises(RemoteError) as gave_up:
            await ask(path, 0.3)
        under_way = len(inflight)
        async with asyncio.TaskGroup() as group:
            again = [group.create_task(ask(path)) for _ in range(3)]
            await slow.has_been_asked(4)
            slow.release.set()
        made = {task.result() for task in again}

    assert gave_up.value.code is Code.DEADLINE_EXCEEDED
    assert under_way == 1
    assert made == {"sandbox1"}
    assert slow.begun == 1


async def test_a_client_that_vanishes_stops_nothing(tmp_path: Path) -> None:
    """Its connection is cut in the middle."""
    path = tmp_path / "s"
    async with serving(path) as (slow, inflight), asyncio.TaskGroup() as group:
        asking = group.create_task(ask(path))
        await slow.has_been_asked(1)
        asking.cancel()
        await asyncio.wait({asking})
        under_way = len(inflight)
        again = group.create_task(ask(path))
        await slow.has_been_asked(2)
        slow.release.set()
        made = await again

    assert (under_way, made, slow.begun) == (1, "sandbox1", 1)


async def test_a_failure_reaches_all_who_wait_and_the_next_try_is_a_new_one(tmp_path: Path) -> None:
    """The server lives on."""
    path = tmp_path / "s"
    async with serving(path) as (slow, inflight):
        slow.fault = TripodError("no", code=Code.UNAVAILABLE, reason="ENGINE_AWAY")
        with pytest.raises(RemoteError):
            await ask(path, 0.3)
        slow.release.set()
        await until(lambda: not len(inflight))
        with pytest.raises(RemoteError) as failed:
            await ask(path)
        slow.fault = None
        made = await ask(path)

    assert failed.value.reason == "ENGINE_AWAY"
    assert (made, slow.begun) == ("sandbox3", 3)
