"""The fault proxy between a client and a small service with every kind of call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from tripod.cri.v1 import api_pb2 as cri
from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from services.common.errors import Code, RemoteError, TripodError
from services.common.grpcclient import call, open_channel, stream
from services.common.grpcserver import Listener, Servicer, build_server
from tests.lab.faultproxy import (
    Cut,
    Delay,
    DropReply,
    Duplicate,
    Error,
    FaultProxy,
    Hang,
    edit,
    fault_proxy,
)

pytestmark = pytest.mark.asyncio
NAME = "tripod.kubelet.v1.PodService"
LIST, WATCH, EXEC = f"{NAME}/ListPods", f"{NAME}/WatchPods", f"{NAME}/Exec"
FEW = 0.3


@dataclass
class Small(pb_grpc.PodServiceServicer):
    """One unary call, one stream of answers, one stream both ways."""

    asked: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    async def ListPods(self, request: pb.ListPodsRequest, context: Any) -> pb.ListPodsResponse:
        """Answer with a pod of the namespace's name."""
        self.asked.append(request.namespace)
        self.seen = {"remaining": context.time_remaining(), **dict(context.invocation_metadata())}
        await context.send_initial_metadata((("first", "yes"),))
        context.set_trailing_metadata((("last", "yes"),))
        if request.namespace == "bad":
            raise TripodError("no", code=Code.NOT_FOUND, reason="NO_SUCH_THING", metadata={"a": "b"})
        return pb.ListPodsResponse(pods=[pb.Pod(name=request.namespace)])

    async def WatchPods(
        self, request: pb.WatchPodsRequest, context: Any
    ) -> AsyncIterator[pb.WatchPodsResponse]:
        """Count to five."""
        for number in range(1, 6):
            yield pb.WatchPodsResponse(revision=number)

    async def Exec(
        self, requests: AsyncIterator[pb.ExecRequest], context: Any
    ) -> AsyncIterator[pb.ExecResponse]:
        """Echo."""
        async for request in requests:
            yield pb.ExecResponse(stdout=request.stdin)


@dataclass
class World:
    """A client beyond the proxy."""

    service: Small
    proxy: FaultProxy
    stub: Any

    async def ask(self, namespace: str = "a", seconds: float = 5) -> list[str]:
        """List pods; return their names."""
        request = pb.ListPodsRequest(namespace=namespace)
        answer = await call(self.stub.ListPods, request, deadline_seconds=seconds, metadata=(("k", "v"),))
        return [pod.name for pod in answer.pods]

    async def count(self, numbers: list[int]) -> None:
        """Watch to the end."""
        async with stream(self.stub.WatchPods, pb.WatchPodsRequest(), deadline_seconds=5) as answers:
            async for answer in answers:
                numbers.append(answer.revision)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Serve the service, and the proxy before it."""
    small = Small()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = build_server(
        [Servicer(NAME, lambda s: pb_grpc.add_PodServiceServicer_to_server(small, s))],
        listeners=[Listener(f"unix://{folder}/target")],
    )
    await server.start()
    async with fault_proxy(f"unix://{folder}/target", folder / "proxy") as proxy:
        async with open_channel(proxy.address) as channel:
            yield World(small, proxy, pb_grpc.PodServiceStub(channel))
    await server.stop(0.1)


async def test_every_kind_of_call_passes_unharmed(tmp_path: Path) -> None:
    """Without a fault nobody can tell that the proxy is there."""

    async def said() -> AsyncIterator[pb.ExecRequest]:
        for word in (b"one", b"two"):
            yield pb.ExecRequest(stdin=word)

    numbers: list[int] = []
    async with world(tmp_path) as made:
        names = await made.ask()
        await made.count(numbers)
        async with stream(made.stub.Exec, said(), deadline_seconds=5) as answers:
            echoed = [answer.stdout async for answer in answers]

    assert names == ["a"]
    assert numbers == [1, 2, 3, 4, 5]
    assert echoed == [b"one", b"two"]
    assert made.proxy.calls == {LIST: 1, WATCH: 1, EXEC: 1}


async def test_metadata_deadline_and_errors_pass_both_ways(tmp_path: Path) -> None:
    """What the target says and hears is what both ends said."""
    async with world(tmp_path) as made:
        running = made.stub.ListPods(pb.ListPodsRequest(namespace="a"), timeout=7, metadata=(("k", "v"),))
        await running
        first, last = dict(await running.initial_metadata()), dict(await running.trailing_metadata())
        with pytest.raises(RemoteError) as caught:
            await made.ask("bad")

    assert made.service.seen["k"] == "v"
    assert 0 < made.service.seen["remaining"] < 7
    assert (first["first"], last["last"]) == ("yes", "yes")
    error = caught.value
    assert (error.code, error.reason, error.metadata) == (Code.NOT_FOUND, "NO_SUCH_THING", {"a": "b"})


async def test_an_error_keeps_the_target_out_of_it_and_is_over_after_its_count(tmp_path: Path) -> None:
    """The error is the one that was asked for."""
    async with world(tmp_path) as made:
        made.proxy.inject(LIST, Error(Code.RESOURCE_EXHAUSTED, "TOO_MUCH"), times=1)
        with pytest.raises(RemoteError) as caught:
            await made.ask()
        asked = list(made.service.asked)
        names = await made.ask()

    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MUCH")
    assert asked == []
    assert names == ["a"]
    assert made.proxy.injected == {LIST: 1}


async def test_a_dropped_reply_leaves_the_work_done(tmp_path: Path) -> None:
    """The case that matters most: done, and the caller never learns."""
    async with world(tmp_path) as made:
        made.proxy.inject("*", DropReply(), times=1)
        with pytest.raises(RemoteError) as caught:
            await made.ask()

    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "REPLY_DROPPED")
    assert made.service.asked == ["a"]


async def test_a_duplicate_reaches_the_target_twice(tmp_path: Path) -> None:
    """As a network's retry does."""
    async with world(tmp_path) as made:
        made.proxy.inject(LIST, Duplicate(), times=1)
        names = await made.ask()

    assert made.service.asked == ["a", "a"]
    assert names == ["a"]


@pytest.mark.parametrize("fault", [Hang(), Delay(30)], ids=["hang", "delay"])
async def test_a_hang_or_a_long_delay_ends_with_the_callers_deadline(
    tmp_path: Path, fault: Hang | Delay
) -> None:
    """The target is never asked."""
    async with world(tmp_path) as made:
        made.proxy.inject(LIST, fault, times=1)
        with pytest.raises(RemoteError) as caught:
            await made.ask(seconds=FEW)

    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert made.service.asked == []


async def test_a_delay_only_delays(tmp_path: Path) -> None:
    """The answer comes, later."""
    async with world(tmp_path) as made:
        made.proxy.inject(LIST, Delay(FEW), times=1)
        begin = asyncio.get_running_loop().time()
        names = await made.ask()
        took = asyncio.get_running_loop().time() - begin

    assert names == ["a"]
    assert took >= FEW


async def test_a_stream_is_cut_after_so_many_messages(tmp_path: Path) -> None:
    """What was passed on arrived, then the stream breaks."""
    numbers: list[int] = []
    async with world(tmp_path) as made:
        made.proxy.inject(WATCH, Cut(2), times=1)
        with pytest.raises(RemoteError) as caught:
            await made.count(numbers)
        again: list[int] = []
        await made.count(again)

    assert caught.value.reason == "STREAM_CUT"
    assert numbers == [1, 2]
    assert len(again) == 5


async def test_an_answer_is_edited_for_the_requests_that_are_meant(tmp_path: Path) -> None:
    """`when` looks at the request, `edit` at the decoded answer."""

    def rename(answer: pb.ListPodsResponse) -> None:
        answer.pods[0].name = "changed"

    async with world(tmp_path) as made:
        made.proxy.inject(LIST, edit(pb.ListPodsResponse, rename), when=lambda request: b"this" in request)
        names = await made.ask("this"), await made.ask("that")
        made.proxy.clear()
        after = await made.ask("this")

    assert names == (["changed"], ["that"])
    assert after == ["this"]


def version_of(channel: grpc.aio.Channel) -> Any:
    """Return a method of a contract that the small service does not have."""
    return channel.unary_unary(
        "/runtime.v1.RuntimeService/Version",
        request_serializer=cri.VersionRequest.SerializeToString,
        response_deserializer=cri.VersionResponse.FromString,
    )


async def test_an_unknown_method_and_a_dead_target_answer_as_without_a_proxy(tmp_path: Path) -> None:
    """Also for a contract that the proxy has never heard of."""
    async with fault_proxy(f"unix://{tmp_path}/nobody", tmp_path / "alone") as proxy:
        async with open_channel(proxy.address) as channel:
            with pytest.raises(RemoteError) as dead:
                await call(version_of(channel), cri.VersionRequest(), deadline_seconds=5)
    async with world(tmp_path) as made, open_channel(made.proxy.address) as channel:
        with pytest.raises(RemoteError) as unknown:
            await call(version_of(channel), cri.VersionRequest(), deadline_seconds=5)

    assert dead.value.code is Code.UNAVAILABLE
    assert unknown.value.code is Code.UNIMPLEMENTED
