"""A server as all services have it, called over a real unix socket and real TCP."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc
from tripod.trace.v1 import trace_service_pb2 as pb
from tripod.trace.v1 import trace_service_pb2_grpc as pb_grpc

from services.common import grpcclient, telemetry
from services.common.errors import Code, FieldViolation, RemoteError, TripodError
from services.common.grpcserver import GrpcServer, Limits, Listener, Servicer, build_server
from services.common.telemetry import Telemetry

pytestmark = pytest.mark.asyncio
NAME = "tripod.trace.v1.TraceService"
TOKEN = "t" * 43


class Answers(pb_grpc.TraceServiceServicer):
    """Answers by what the trace id asks for; ListTraces is our changing call."""

    def __init__(self) -> None:
        self.cleaned = asyncio.Event()
        self.entered = asyncio.Event()

    async def GetTrace(self, request: pb.GetTraceRequest, context: Any) -> pb.GetTraceResponse:
        """Fail, hang or answer."""
        if request.trace_id == "fault":
            raise TripodError(
                "no such thing",
                code=Code.NOT_FOUND,
                reason="THING_NOT_FOUND",
                metadata={"thing": "x"},
                violations=[FieldViolation("a.b", "is bad")],
                retry_after_seconds=1.5,
            )
        if request.trace_id == "many":
            faults = [FieldViolation(f"field[{i}]", "d" * 100) for i in range(500)]
            raise TripodError("many", code=Code.INVALID_ARGUMENT, reason="MANY", violations=faults)
        if request.trace_id == "bug":
            raise ZeroDivisionError("secret detail")
        if request.trace_id == "hang":
            self.entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cleaned.set()
        return pb.GetTraceResponse()

    async def ListTraces(self, request: pb.ListTracesRequest, context: Any) -> pb.ListTracesResponse:
        """Answer."""
        return pb.ListTracesResponse()


@asynccontextmanager
async def serving(answers: Answers, path: Path, *, deadline: float = 30) -> AsyncIterator[GrpcServer]:
    """Serve on a unix socket and on TCP."""
    server = build_server(
        [Servicer(NAME, lambda s: pb_grpc.add_TraceServiceServicer_to_server(answers, s))],
        listeners=[Listener(f"unix://{path}", os.getgid()), Listener("127.0.0.1:0")],
        changing_methods=frozenset({f"/{NAME}/ListTraces"}),
        token=lambda: TOKEN,
        limits=Limits(default_deadline_seconds=deadline),
    )
    await server.start()
    await server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop(0.2)


@pytest.fixture
def tracing() -> Telemetry:
    """Trace into a fresh ring."""
    return telemetry.setup("tripod-test")


async def get(address: str, trace_id: str) -> Any:
    """Call GetTrace."""
    async with grpcclient.open_channel(address) as channel:
        stub = pb_grpc.TraceServiceStub(channel)
        return await grpcclient.call(stub.GetTrace, pb.GetTraceRequest(trace_id=trace_id), deadline_seconds=5)


async def test_an_error_arrives_with_all_its_details(tmp_path: Path) -> None:
    """A client branches on the reason and shows the faults."""
    async with serving(Answers(), tmp_path / "s") as server:
        with pytest.raises(RemoteError) as caught:
            await get(server.addresses[0], "fault")

    error = caught.value
    assert (error.code, error.reason, error.metadata) == (Code.NOT_FOUND, "THING_NOT_FOUND", {"thing": "x"})
    assert error.violations == (FieldViolation("a.b", "is bad"),)
    assert error.retry_after_seconds == 1.5


async def test_more_faults_than_a_header_holds_still_arrive_as_an_error(tmp_path: Path) -> None:
    """Trailing metadata has a limit; the first faults are kept."""
    async with serving(Answers(), tmp_path / "s") as server:
        with pytest.raises(RemoteError) as caught:
            await get(server.addresses[1], "many")

    assert caught.value.reason == "MANY"
    assert 20 < len(caught.value.violations) < 500


async def test_a_bug_is_internal_and_tells_no_secret(tmp_path: Path) -> None:
    """What an unexpected exception says may hold anything."""
    async with serving(Answers(), tmp_path / "s") as server:
        with pytest.raises(RemoteError) as caught:
            await get(server.addresses[0], "bug")

    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "INTERNAL_ERROR")
    assert "secret" not in str(caught.value)


async def test_changing_over_tcp_needs_the_token_and_a_unix_socket_does_not(tmp_path: Path) -> None:
    """Who may open the socket may change the node; who can reach the port must show the token."""
    codes = {}
    async with serving(Answers(), tmp_path / "s") as server:
        for address in server.addresses:
            for token in ("", "wrong", TOKEN):
                async with grpcclient.open_channel(address) as channel:
                    stub = pb_grpc.TraceServiceStub(channel)
                    try:
                        await grpcclient.call(
                            stub.ListTraces,
                            pb.ListTracesRequest(),
                            deadline_seconds=5,
                            metadata=grpcclient.token_metadata(token),
                        )
                        codes[address[:4], token] = "OK"
                    except RemoteError as error:
                        codes[address[:4], token] = error.reason

    assert codes == {
        ("unix", ""): "OK",
        ("unix", "wrong"): "OK",
        ("unix", TOKEN): "OK",
        ("127.", ""): "TOKEN_REQUIRED",
        ("127.", "wrong"): "TOKEN_REQUIRED",
        ("127.", TOKEN): "OK",
    }


async def test_the_socket_is_for_its_group_alone(tmp_path: Path) -> None:
    """Mode 0660 from the first moment."""
    async with serving(Answers(), tmp_path / "s"):
        mode = stat.S_IMODE((tmp_path / "s").stat().st_mode)

    assert mode == 0o660
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("length", "reason"), [(105, ""), (106, "SOCKET_PATH_TOO_LONG")])
async def test_a_socket_path_that_grpcio_cannot_take_is_refused_by_its_length(
    length: int, reason: str
) -> None:
    """Else it would seem to be in use."""
    with tempfile.TemporaryDirectory(prefix="long-") as folder:
        path = Path(folder, "s" * (length - len(folder) - 1))
        said = ""
        try:
            async with serving(Answers(), path):
                pass
        except TripodError as error:
            said = error.reason

    assert said == reason


async def test_a_call_without_a_deadline_gets_one(tmp_path: Path) -> None:
    """A client that forgets its deadline cannot hold a handler for ever."""
    answers = Answers()
    async with serving(answers, tmp_path / "s", deadline=0.1) as server:
        async with grpc.aio.insecure_channel(server.addresses[1]) as channel:
            stub = pb_grpc.TraceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetTrace(pb.GetTraceRequest(trace_id="hang"))

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert answers.cleaned.is_set()


async def test_a_call_that_its_caller_abandons_is_cancelled(tmp_path: Path) -> None:
    """The handler of a cancelled call cleans up at once."""
    answers = Answers()
    async with serving(answers, tmp_path / "s") as server:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            task = group.create_task(get(server.addresses[0], "hang"))
            await answers.entered.wait()
            task.cancel()
            await answers.cleaned.wait()


async def test_stopping_waits_for_the_clean_up_of_handlers(tmp_path: Path) -> None:
    """After `stop` no handler runs."""
    answers = Answers()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        async with serving(answers, tmp_path / "s") as server:

            async def caller() -> None:
                with pytest.raises(RemoteError):
                    await get(server.addresses[0], "hang")

            group.create_task(caller())
            await answers.entered.wait()

        assert answers.cleaned.is_set()


async def test_health_says_not_serving_until_told(tmp_path: Path) -> None:
    """Whoever waits for health waits for the service's own word."""
    async with serving(Answers(), tmp_path / "s") as server:
        async with grpcclient.open_channel(server.addresses[1]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            before = await stub.Check(health_pb2.HealthCheckRequest(service=NAME))
            await server.set_serving(False)
            after = await stub.Check(health_pb2.HealthCheckRequest(service=NAME))

    assert (before.status, after.status) == (1, 2)


class Absent(node_grpc.NodeServiceServicer):
    """Has no node."""

    async def GetNode(self, request: node_pb.GetNodeRequest, context: Any) -> node_pb.GetNodeResponse:
        """Say that there is none."""
        raise TripodError("no node", code=Code.NOT_FOUND, reason="NODE_NOT_FOUND")


async def test_a_call_is_one_trace_with_a_client_and_a_server_span(
    tmp_path: Path, tracing: Telemetry
) -> None:
    """The server's span is the child of the client's, and a NOT_FOUND fails only the client's."""
    name = "tripod.kubelet.v1.NodeService"
    absent = Absent()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = build_server(
        [Servicer(name, lambda s: node_grpc.add_NodeServiceServicer_to_server(absent, s))],
        listeners=[Listener(f"unix://{tmp_path}/s")],
    )
    await server.start()
    async with grpcclient.open_channel(server.addresses[0]) as channel:
        stub = node_grpc.NodeServiceStub(channel)
        with pytest.raises(RemoteError):
            await grpcclient.call(stub.GetNode, node_pb.GetNodeRequest(), deadline_seconds=5)
    await server.stop(0.2)

    spans = {span.kind.name: span for span in tracing.ring.spans()}
    client, served = spans["CLIENT"], spans["SERVER"]
    assert client.name == served.name == f"{name}/GetNode"
    assert served.parent is not None
    assert client.context is not None
    assert served.parent.span_id == client.context.span_id
    assert (client.status.is_ok, served.status.is_ok) == (False, True)
