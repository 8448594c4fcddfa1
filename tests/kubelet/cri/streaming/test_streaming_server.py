"""The streaming server over real loopback TCP, with commands that need no container."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from services.common.clock import Clock, SystemClock
from services.kubelet.adapters.exec_stream import (
    ExecChannel,
    ExecClient,
    ExecStreamError,
    WebSocketExec,
    open_exec_stream,
)
from services.kubelet.cri.streaming.server import MESSAGE_BYTES, HttpStreamingServer
from services.kubelet.cri.streaming.session import StreamRequest
from tests.fakes.clock import FakeClock
from tests.kubelet.cri.streaming.fake_backend import PROGRAMS, FakeBackend, FakePorts
from tests.waiting import until

pytestmark = pytest.mark.asyncio

LIMIT_SECONDS = 10.0


@asynccontextmanager
async def serving(
    clock: Clock | None = None, *, session_limit: int = 100
) -> AsyncIterator[tuple[HttpStreamingServer, FakeBackend]]:
    """A server on a free port of loopback."""
    backend = FakeBackend(PROGRAMS)
    server = HttpStreamingServer(
        backend, FakePorts(), clock=clock or SystemClock(), session_limit=session_limit
    )
    await server.start()
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield server, backend
    finally:
        await server.stop()


def run(*command: str, container_id: str = "box", tty: bool = False) -> StreamRequest:
    """A request for a command with input."""
    return StreamRequest(container_id=container_id, command=command, tty=tty, stdin=True)


@asynccontextmanager
async def raw(url: str, *protocols: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A plain WebSocket client."""
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=protocols) as socket:
        yield socket


async def test_output_comes_by_stream_and_the_exit_code_at_the_end() -> None:
    """A command that fails tells so in the status document."""
    async with serving() as (server, backend):
        async with await open_exec_stream(server.exec_url(run("fail"))) as client:
            output = [item async for item in client]

        assert output == [(ExecChannel.STDOUT, b"out"), (ExecChannel.STDERR, b"err")]
        assert client.exit_code == 3
        assert backend.sessions[0].closed.is_set()


async def test_the_input_can_end_while_the_output_goes_on() -> None:
    """`cat` answers everything and ends well when its input ends."""
    async with serving() as (server, _):
        async with await open_exec_stream(server.exec_url(run("cat"))) as client:
            await client.write_stdin(b"one")
            await client.write_stdin(b"two")
            await client.close_stdin()
            output = b"".join([data async for _, data in client])

        assert output == b"onetwo"
        assert client.exit_code == 0


async def test_megabytes_pass_unchanged_both_ways() -> None:
    """Data larger than any message is cut and joined in order."""
    data = bytes(range(256)) * 16384
    async with serving() as (server, _):
        async with await open_exec_stream(server.exec_url(run("cat"))) as client:
            async with asyncio.TaskGroup() as group:
                group.create_task(_write_and_end(client, data))
                output = b"".join([chunk async for _, chunk in client])

        assert output == data


async def _write_and_end(client: ExecClient, data: bytes) -> None:
    await client.write_stdin(data)
    await client.close_stdin()


async def test_the_wire_is_as_kubernetes_writes_it_in_version_4() -> None:
    """An empty message first, then the channels, a status, and a normal close."""
    async with serving() as (server, _):
        async with raw(server.exec_url(run("fail")), "v4.channel.k8s.io") as socket:
            messages = [message.data async for message in socket]

            assert socket.protocol == "v4.channel.k8s.io"
            assert messages[:3] == [b"\x01", b"\x01out", b"\x02err"]
            assert messages[3][:1] == b"\x03"
            assert json.loads(messages[3][1:])["details"]["causes"] == [
                {"reason": "ExitCode", "message": "3"}
            ]
            assert len(messages) == 4
            assert socket.close_code == aiohttp.WSCloseCode.OK


async def test_a_terminals_size_reaches_the_command() -> None:
    """Columns and rows."""
    async with serving() as (server, backend):
        async with await open_exec_stream(server.exec_url(run("cat", tty=True))) as client:
            await client.resize(132, 43)
            await until(lambda: bool(backend.sessions and backend.sessions[0].sizes))

            assert backend.sessions[0].sizes == [(132, 43)]


async def test_a_command_that_stops_reading_still_delivers_its_output() -> None:
    """As `yes | head -1`: the input breaks, the output is complete and the exit code comes."""
    async with serving() as (server, _):
        async with await open_exec_stream(server.exec_url(run("head"))) as client:
            for _ in range(50):
                await client.write_stdin(b"line\n")
            output = b"".join([data async for _, data in client])

        assert output == b"line\n" * 100
        assert client.exit_code == 0


async def test_a_client_that_vanishes_ends_its_command() -> None:
    """The connection is cut without a word while the command is silent."""
    async with serving() as (server, backend):
        async with raw(server.exec_url(run("hang")), "v5.channel.k8s.io") as socket:
            await socket.receive()
            await socket.receive()
            _abort(socket)
            await backend.sessions[0].closed.wait()


async def test_a_client_that_vanishes_while_its_input_is_stuck_is_noticed_by_the_pings() -> None:
    """The command reads nothing, so the socket is not read either, and only writing shows the loss."""
    clock = FakeClock()
    async with serving(clock) as (server, backend):
        async with raw(server.exec_url(run("hang")), "v5.channel.k8s.io") as socket:
            await socket.receive()
            await socket.receive()
            with pytest.raises(TimeoutError):
                await _write_until_stuck(socket)
            _abort(socket)
            while not backend.sessions[0].closed.is_set():
                await clock.advance(5)
                await asyncio.sleep(0.005)


async def _write_until_stuck(socket: aiohttp.ClientWebSocketResponse) -> None:
    async with asyncio.timeout(0.3):
        while True:
            await socket.send_bytes(b"\x00" + bytes(32768))


async def test_a_client_that_does_not_read_stops_the_command() -> None:
    """An endless output is produced only as far as the socket's buffers go."""
    async with serving() as (server, backend):
        async with raw(server.exec_url(run("yes")), "v5.channel.k8s.io") as socket:
            await socket.receive()
            before = -1
            while before != backend.sessions[0].produced_count:
                before = backend.sessions[0].produced_count
                for _ in range(2000):
                    await asyncio.sleep(0)

            assert before * 65536 < 16 << 20

            for _ in range(1000):
                await socket.receive()
            await until(lambda: backend.sessions[0].produced_count > before)


async def test_an_idle_stream_ends_after_four_hours() -> None:
    """Forgotten terminals do not stay for ever."""
    clock = FakeClock()
    async with serving(clock) as (server, backend):
        async with raw(server.exec_url(run("hang")), "v5.channel.k8s.io") as socket:
            await socket.receive()
            await socket.receive()
            await clock.advance(3.9 * 3600)
            assert not backend.sessions[0].closed.is_set()

            await clock.advance(0.2 * 3600)
            await backend.sessions[0].closed.wait()
            message = await socket.receive()

            assert message.type is aiohttp.WSMsgType.CLOSE


async def test_a_message_over_a_mebibyte_ends_the_stream() -> None:
    """No client can make the server hold more."""
    async with serving() as (server, backend):
        async with raw(server.exec_url(run("cat")), "v5.channel.k8s.io") as socket:
            await socket.receive()
            await socket.send_bytes(bytes(MESSAGE_BYTES + 1))
            await backend.sessions[0].closed.wait()
            message = await socket.receive()

            assert message.type is aiohttp.WSMsgType.CLOSE
            assert message.data == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_a_container_that_does_not_run_is_told_as_a_status() -> None:
    """The connection is made, the reason comes as text for people."""
    async with serving() as (server, _):
        async with await open_exec_stream(server.exec_url(run("cat", container_id="gone"))) as client:
            with pytest.raises(ExecStreamError, match="Container gone is not running") as failed:
                _ = [item async for item in client]

        assert failed.value.reason == "EXEC_FAILED"


async def test_a_url_works_once() -> None:
    """A second use, and any guess, is refused."""
    async with serving() as (server, backend):
        url = server.exec_url(run("fail"))
        async with await open_exec_stream(url) as client:
            _ = [item async for item in client]
        for void in (url, f"{server.base_url}/exec/guess"):
            with pytest.raises(ExecStreamError, match="HTTP 404") as refused:
                await open_exec_stream(void)

            assert refused.value.reason == "EXEC_STREAM_REFUSED"
        assert len(backend.sessions) == 1


async def test_a_url_is_void_after_a_minute() -> None:
    """Time is the clock's."""
    clock = FakeClock()
    async with serving(clock) as (server, _):
        url = server.exec_url(run("fail"))
        await clock.advance(61)

        with pytest.raises(ExecStreamError, match="HTTP 404"):
            await open_exec_stream(url)


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        pytest.param(
            {
                "Connection": "Upgrade",
                "Upgrade": "SPDY/3.1",
                "X-Stream-Protocol-Version": "v9.channel.k8s.io",
            },
            403,
            "unable to negotiate protocol: client supports [v9.channel.k8s.io]",
            id="a-version-of-spdy-streams-that-is-not-ours",
        ),
        pytest.param(
            {"Connection": "Upgrade", "Upgrade": "SPDY/2"}, 426, "An upgrade is needed", id="spdy-2"
        ),
        pytest.param({}, 426, "An upgrade is needed", id="plain-http"),
        pytest.param(
            {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Protocol": "binary.k8s.io",
            },
            400,
            "None of the offered subprotocols",
            id="a-subprotocol-that-is-not-ours",
        ),
    ],
)
async def test_what_is_not_served_is_refused_with_a_reason_and_keeps_the_token(
    headers: dict[str, str], status: int, text: str
) -> None:
    """A client may try SPDY first and then come back with WebSocket."""
    async with serving() as (server, _):
        url = server.exec_url(run("fail"))
        async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as answer:
            assert answer.status == status
            body = await answer.text()

            assert text in body
            assert "v4.channel.k8s.io" in body
        async with await open_exec_stream(url) as client:
            _ = [item async for item in client]

        assert client.exit_code == 3


async def test_more_streams_than_the_limit_are_refused_and_keep_their_token() -> None:
    """Two at a time here; the third may come when one has ended."""
    async with serving(session_limit=2) as (server, _):
        url = server.exec_url(run("fail"))
        async with (
            await open_exec_stream(server.exec_url(run("hang"))),
            await open_exec_stream(server.exec_url(run("hang"))) as second,
        ):
            with pytest.raises(ExecStreamError, match="HTTP 429"):
                await open_exec_stream(url)
            await second.close()
            async with await _retried(url) as client:
                _ = [item async for item in client]

        assert client.exit_code == 3


async def _retried(url: str) -> WebSocketExec:
    while True:
        try:
            return await open_exec_stream(url)
        except ExecStreamError:
            await asyncio.sleep(0.005)


async def test_stopping_the_server_ends_every_stream() -> None:
    """Within its seconds, with the sessions closed."""
    async with serving() as (server, backend):
        async with (
            await open_exec_stream(server.exec_url(run("hang"))) as first,
            await open_exec_stream(server.exec_url(run("yes"))),
        ):
            await anext(aiter(first))
            await until(lambda: len(backend.sessions) == 2)
            await server.stop()

            assert all(session.closed.is_set() for session in backend.sessions)
            with pytest.raises(ExecStreamError) as broken:
                _ = [item async for item in first]
            assert broken.value.reason == "EXEC_STREAM_BROKEN"


def _abort(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Cut the connection as a killed process does."""
    connection = socket._conn  # aiohttp has no public way to cut a connection
    assert connection is not None
    assert connection.transport is not None
    connection.transport.abort()
