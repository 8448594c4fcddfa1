"""Attach and PortForward over gRPC, on a real streaming server: commands and ports that need no container."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from cli import forwarding
from cli.errors import CliError
from services.common.clock import SystemClock
from services.common.grpcclient import open_channel
from services.common.grpcserver import Listener, Servicer, build_server
from services.common.watch import WatchHub
from services.kubelet.server.pods import PodServicer
from tests.kubelet.web.port import Port, held, secure, start_pod
from tests.waiting import until

pytestmark = pytest.mark.asyncio
Stub = Any


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Port, Stub]]:
    """Serve PodService for a pod that runs, beside the port whose runtime it shares."""
    async with secure(folder) as port, asyncio.timeout(30):
        await start_pod(port)
        servicer = PodServicer(
            source=port.source,
            runtime=port.runtime,
            statuses=port.statuses,
            events=WatchHub("run"),
            remembered=list,
            settled=asyncio.Event(),
            explainer=cast("Any", None),
            clock=SystemClock(),
            log_root=port.log_root,
        )
        add = partial(pb_grpc.add_PodServiceServicer_to_server, servicer)
        place = f"unix://{folder}/k.sock"
        server = build_server([Servicer("tripod.kubelet.v1.PodService", add)], listeners=[Listener(place)])
        await server.start()
        channel = open_channel(place)
        try:
            yield port, pb_grpc.PodServiceStub(channel)
        finally:
            await channel.close(None)
            await server.stop(0.1)


def attach_start(**values: Any) -> pb.AttachRequest:
    """Ask to attach to the pod's first container."""
    return pb.AttachRequest(start=pb.AttachStart(pod_name="web", container="app", **values))


async def test_attach_carries_input_and_output(short_path: Path) -> None:
    """Until the container ends, which `cat` does with its input."""
    async with served(short_path) as (_, stub):
        call = stub.Attach(timeout=20)
        await call.write(attach_start(stdin=True))
        await call.write(pb.AttachRequest(stdin=b"hello"))
        first = await call.read()
        await call.write(pb.AttachRequest(stdin_end=pb.StdinEnd()))
        rest = await call.read()

    assert first.stdout == b"hello"
    assert not isinstance(rest, pb.AttachResponse)


async def test_a_container_without_an_input_is_given_none(short_path: Path) -> None:
    """The field is named."""
    async with served(short_path) as (_, stub):
        call = stub.Attach(timeout=20)
        request = pb.AttachRequest(start=pb.AttachStart(pod_name="web", container="idle", stdin=True))
        await call.write(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def forward_start(port: int) -> pb.PortForwardRequest:
    """Ask for a port of the pod."""
    return pb.PortForwardRequest(start=pb.PortForwardStart(pod_name="web", port=port))


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer after the client's end."""
    writer.write((await reader.read()).upper())
    writer.close()


async def test_a_connection_is_carried_with_its_half_ends(short_path: Path) -> None:
    """The program answers after the caller's end; nothing stays behind."""
    async with served(short_path) as (_, stub), await asyncio.start_server(upper, "127.0.0.1", 0) as there:
        before = (0, 0)
        for _ in range(10):
            call = stub.PortForward(timeout=20)
            await call.write(forward_start(there.sockets[0].getsockname()[1]))
            for _ in range(20):
                await call.write(pb.PortForwardRequest(data=b"abc" * 10_000))
            await call.done_writing()
            found = b"".join([answer.data async for answer in call])
            assert found == b"ABC" * 200_000
            before = before if before[0] else held()

        await until(lambda: held() <= before)


async def test_a_port_where_nobody_listens_is_told(short_path: Path) -> None:
    """In the kubelet's words."""
    async with served(short_path) as (_, stub):
        call = stub.PortForward(timeout=20)
        await call.write(forward_start(1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "error forwarding port 1" in (caught.value.details() or "")


@pytest.mark.parametrize("number", [0, 65536, -1])
async def test_a_port_that_is_none_is_refused(short_path: Path, number: int) -> None:
    """With the field's path."""
    async with served(short_path) as (_, stub):
        call = stub.PortForward(timeout=20)
        await call.write(forward_start(number))
        with pytest.raises(grpc.aio.AioRpcError, match=r"start\.port"):
            await call.read()


@pytest.mark.parametrize(
    ("text", "expected"), [("8080:80", (8080, 80)), ("80", (80, 80)), (":80", (0, 80)), ("0:80", (0, 80))]
)
async def test_ports_of_the_command_line_are_read(text: str, expected: tuple[int, int]) -> None:
    """As kubectl reads them."""
    assert forwarding.read_ports([text]) == [expected]


@pytest.mark.parametrize("text", ["", "x", "1:2:3", "80:", "70000", "8080:0", "-1"])
async def test_what_is_no_pair_of_ports_is_refused(text: str) -> None:
    """With an example."""
    with pytest.raises(CliError, match="no pair of ports"):
        forwarding.read_ports([text])


async def test_the_command_forwards_connections(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a port of loopback that it names, each as a call of its own."""
    async with served(short_path), await asyncio.start_server(upper, "127.0.0.1", 0) as there:
        channel = grpc.insecure_channel(f"unix://{short_path}/k.sock")

        class Node:
            def pods(self) -> Any:
                return pb_grpc.PodServiceStub(channel)

            def metadata(self) -> list[tuple[str, str]]:
                return []

        ports = [(0, there.sockets[0].getsockname()[1])]
        run = partial(forwarding.forward, cast("Any", Node()), "", "web", ports)
        threading.Thread(target=run, daemon=True).start()
        said = ""
        while " -> " not in said:
            said += capsys.readouterr().out
            await asyncio.sleep(0.01)
        number = int(said.split("Forwarding from 127.0.0.1:")[1].split()[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(b"hello")
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await asyncio.to_thread(channel.close)

    assert answer == b"HELLO"
