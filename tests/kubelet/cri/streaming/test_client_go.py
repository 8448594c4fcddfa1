"""The streaming server under Kubernetes' own client: its SPDY and WebSocket executors and port forwarders."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.kubelet.cri.streaming.server import HttpStreamingServer
from services.kubelet.cri.streaming.session import ForwardRequest, StreamRequest
from tests.kubelet.cri.streaming.fake_backend import PROGRAMS, FakeBackend, FakePorts
from tests.peers.client_go import client_go, needs_client_go

pytestmark = [pytest.mark.asyncio, needs_client_go]
EXEC = pytest.mark.parametrize("mode", ["exec", "ws-exec"])
FORWARD = pytest.mark.parametrize("mode", ["forward", "ws-forward"])


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[HttpStreamingServer, FakeBackend]]:
    """A server on a free port of loopback."""
    backend = FakeBackend(PROGRAMS)
    server = HttpStreamingServer(backend, FakePorts())
    await server.start()
    try:
        yield server, backend
    finally:
        await server.stop()


@EXEC
async def test_outputs_and_the_exit_code_arrive(mode: str) -> None:
    """Each output by itself, without an input."""
    async with serving() as (server, _):
        answer = await client_go(mode, server.exec_url(StreamRequest("box", ("fail",))))

    assert (answer.output, answer.code) == (b"out", 3)
    assert answer.error.startswith(b"err")


@EXEC
async def test_the_input_ends_while_the_output_goes_on(mode: str) -> None:
    """Megabytes of it, which must all come back."""
    data = os.urandom(8 << 20)
    async with serving() as (server, _):
        url = server.exec_url(StreamRequest("box", ("cat",), stdin=True))
        answer = await client_go(mode, url, "-stdin", data=data)

    assert answer.output == data
    assert (answer.error, answer.code) == (b"", 0)


@EXEC
async def test_a_terminals_sizes_arrive_in_order(mode: str) -> None:
    """And there is no error output."""
    async with serving() as (server, backend):
        url = server.exec_url(StreamRequest("box", ("cat",), tty=True, stdin=True))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(
                client_go(mode, url, "-tty", "-stdin", "-sizes", "80x24,132x43", data=b"x" * 100_000)
            )
        answer = task.result()

    assert answer.output == b"x" * 100_000
    assert backend.sessions[0].sizes == [(80, 24), (132, 43)]


@EXEC
async def test_a_command_that_cannot_run_is_told(mode: str) -> None:
    """As the client's error."""
    async with serving() as (server, _):
        answer = await client_go(mode, server.exec_url(StreamRequest("gone", ("cat",))))

    assert answer.code == 125
    assert b"Container gone is not running" in answer.error


@EXEC
async def test_a_command_that_stops_reading_still_delivers_its_output(mode: str) -> None:
    """The client goes on writing, and its connection must not be cut under its output."""
    async with serving() as (server, _):
        url = server.exec_url(StreamRequest("box", ("head",), stdin=True))
        answer = await client_go(mode, url, "-stdin", data=b"line\n" * 200_000)

    assert answer.code == 0
    assert answer.output.startswith(b"line\n")


@pytest.mark.parametrize("mode", ["attach", "ws-attach"])
async def test_attaching_works_the_same(mode: str) -> None:
    """By a URL of its own."""
    async with serving() as (server, _):
        url = server.attach_url(StreamRequest("cat", stdin=True))
        answer = await client_go(mode, url, "-stdin", data=b"to the container")

    assert (answer.output, answer.error, answer.code) == (b"to the container", b"", 0)


@FORWARD
async def test_ports_are_forwarded_many_times_at_once(mode: str) -> None:
    """Each half ends by itself: the program answers after the client's end."""

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async with serving() as (server, _), await asyncio.start_server(upper, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        url = server.forward_url(ForwardRequest("box"))
        flags = ("-port", str(port), "-count", "40")
        answer = await client_go(mode, url, *flags, data=b"abc" * 30_000)

    assert answer.output == b"ABC" * 30_000 * 40
    assert answer.code == 0


@FORWARD
async def test_a_port_where_nobody_listens_is_told(mode: str) -> None:
    """In the kubelet's words."""
    async with serving() as (server, _):
        url = server.forward_url(ForwardRequest("box"))
        answer = await client_go(mode, url, "-port", "1", data=b"x")

    assert answer.output == b""
    assert b"error forwarding port 1 to pod box, uid : failed to connect to localhost:1" in answer.error
