"""Commands and ports over SPDY on real loopback TCP, with programs that need no container."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from services.common.clock import Clock, SystemClock
from services.common.spdy import frames
from services.common.spdy.multiplex import Multiplexer, SpdyStream, StreamResetError
from services.kubelet.cri.streaming import command, forward, spdycommand
from services.kubelet.cri.streaming.server import HttpStreamingServer
from services.kubelet.cri.streaming.session import ForwardRequest, StreamRequest
from tests.fakes.clock import FakeClock
from tests.kubelet.cri.streaming.fake_backend import PROGRAMS, FakeBackend, FakePorts
from tests.kubelet.cri.streaming.spdy_client import (
    FORWARD,
    V4,
    Refused,
    opened,
    read_all,
    spdy,
    tunnel,
    upgraded,
)
from tests.waiting import until

pytestmark = pytest.mark.asyncio

LIMIT_SECONDS = 20.0
COMMAND = ("error", "stdin", "stdout", "stderr")


@asynccontextmanager
async def serving(clock: Clock | None = None) -> AsyncIterator[tuple[HttpStreamingServer, FakeBackend]]:
    """A server on a free port of loopback."""
    backend = FakeBackend(PROGRAMS)
    server = HttpStreamingServer(backend, FakePorts(), clock=clock or SystemClock())
    await server.start()
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield server, backend
    finally:
        await server.stop()


def run(*words: str, container_id: str = "box", tty: bool = False) -> StreamRequest:
    """A request for a command with input."""
    return StreamRequest(container_id=container_id, command=words, tty=tty, stdin=True)


async def test_output_comes_by_stream_and_the_status_at_the_end() -> None:
    """As the WebSocket tells it."""
    async with serving() as (server, backend):
        async with spdy(server.exec_url(run("fail")), V4) as link:
            streams = await opened(link, *COMMAND)
            out, err, status = [await read_all(streams[kind]) for kind in ("stdout", "stderr", "error")]

        assert (out, err) == (b"out", b"err")
        assert json.loads(status)["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
        assert backend.sessions[0].closed.is_set()
        await until(lambda: server.session_count == 0)


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("channel.k8s.io", b"command terminated with non-zero exit code: 3"),
        ("v2.channel.k8s.io", b"command terminated with non-zero exit code: 3"),
        ("v3.channel.k8s.io", b"command terminated with non-zero exit code: 3"),
    ],
)
async def test_older_versions_tell_a_failure_in_words(version: str, status: bytes) -> None:
    """The document came with version 4."""
    async with serving() as (server, _):
        async with spdy(server.exec_url(run("fail")), "v9.channel.k8s.io", version) as link:
            streams = await opened(link, *COMMAND)

            assert await read_all(streams["error"]) == status


async def test_megabytes_pass_unchanged_both_ways_and_the_input_can_end() -> None:
    """Through windows that are far smaller."""
    data = bytes(range(256)) * (1 << 14)
    async with serving() as (server, _):
        async with spdy(server.exec_url(run("cat")), V4) as link, asyncio.TaskGroup() as group:
            streams = await opened(link, *COMMAND)
            group.create_task(_write_and_end(streams["stdin"], data))
            output = await read_all(streams["stdout"])
            status = await read_all(streams["error"])

    assert output == data
    assert json.loads(status)["status"] == "Success"


async def _write_and_end(stream: SpdyStream, data: bytes) -> None:
    await stream.write(data)
    stream.end()


async def test_sizes_reach_the_command_while_its_input_is_stuck() -> None:
    """They have a stream of their own."""
    async with serving() as (server, backend):
        async with spdy(server.exec_url(run("hang", tty=True)), V4) as link:
            streams = await opened(link, "error", "stdin", "stdout", "resize")
            await streams["stdin"].write(bytes(100_000))
            await streams["resize"].write(b'{"Width":132,"Height":43}\n')
            await until(lambda: bool(backend.sessions) and bool(backend.sessions[0].sizes))

            assert backend.sessions[0].sizes == [(132, 43)]


async def test_a_client_that_vanishes_ends_its_command() -> None:
    """Without a word, while the command is silent."""
    async with serving() as (server, backend):
        with contextlib.suppress(StreamResetError):
            async with spdy(server.exec_url(run("hang")), V4) as link:
                streams = await opened(link, *COMMAND)
                await streams["stdout"].read()
        await backend.sessions[0].closed.wait()
        await until(lambda: server.session_count == 0)


async def test_a_client_that_resets_the_output_ends_its_command() -> None:
    """It will read no more."""
    async with serving() as (server, backend):
        async with spdy(server.exec_url(run("yes")), V4) as link:
            streams = await opened(link, *COMMAND)
            await streams["stdout"].read()
            streams["stdout"].reset()
            await backend.sessions[0].closed.wait()


async def test_a_client_that_does_not_read_stops_the_command() -> None:
    """By its windows, although the wire is read."""
    async with serving() as (server, backend):
        async with spdy(server.exec_url(run("yes")), V4) as link:
            streams = await opened(link, *COMMAND)
            before = -1
            while before != (backend.sessions[0].produced_count if backend.sessions else 0):
                before = backend.sessions[0].produced_count if backend.sessions else 0
                for _ in range(2000):
                    await asyncio.sleep(0)

            assert before * 65536 < 4 << 20

            for _ in range(200):
                await streams["stdout"].read()
            await until(lambda: backend.sessions[0].produced_count > before)


async def test_a_client_that_ignores_windows_is_stopped_by_the_socket() -> None:
    """As the Go library does: it writes whatever it has. Pings show that it went."""
    clock = FakeClock()
    async with serving(clock) as (server, backend):
        _, writer = await upgraded(server.exec_url(run("hang")), V4)
        sender = _begun(writer)
        with pytest.raises(TimeoutError):
            await _write_until_stuck(writer, sender.write(frames.Data(3, bytes(32768))))
        writer.transport.abort()
        while not backend.sessions[0].closed.is_set():
            await clock.advance(5)
            await asyncio.sleep(0.005)


def _begun(writer: asyncio.StreamWriter) -> frames.FrameWriter:
    sender = frames.FrameWriter()
    for index, kind in enumerate(COMMAND):
        writer.write(sender.write(frames.SynStream(2 * index + 1, {"streamtype": kind})))
    return sender


async def _write_until_stuck(writer: asyncio.StreamWriter, data: bytes) -> None:
    async with asyncio.timeout(0.5):
        for _ in range((16 << 20) // len(data)):
            writer.write(data)
            await writer.drain()


@pytest.mark.process
async def test_a_client_that_asks_and_does_not_read_the_answers_is_cut_off() -> None:
    """A flood of pings fills no memory."""
    async with serving() as (server, backend):
        _, writer = await upgraded(server.exec_url(run("hang")), V4, receive_bytes=4096)
        flood = _begun(writer).write(frames.Ping(1)) * 10_000
        with pytest.raises(ConnectionError):
            await _flood(writer, flood)
        await until(lambda: backend.sessions[0].closed.is_set())


async def _flood(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()


async def test_an_idle_stream_ends_after_four_hours_although_pings_are_answered() -> None:
    """Forgotten terminals do not stay for ever."""
    clock = FakeClock()
    async with serving(clock) as (server, backend):
        async with spdy(server.exec_url(run("hang")), V4) as link:
            streams = await opened(link, *COMMAND)
            await streams["stdout"].read()
            for _ in range(4):
                await clock.advance(0.98 * 3600)
                await asyncio.sleep(0.01)
            assert not backend.sessions[0].closed.is_set()

            await clock.advance(0.2 * 3600)
            await backend.sessions[0].closed.wait()


async def test_garbage_ends_the_connection_with_a_goodbye() -> None:
    """GOAWAY with PROTOCOL_ERROR, and no session is left."""
    async with serving() as (server, backend):
        reader, writer = await upgraded(server.exec_url(run("hang")), V4)
        writer.write(bytes.fromhex("8003000600ffffff"))
        answer = await reader.read()

        assert answer.endswith(frames.FrameWriter().write(frames.GoAway(0, 1)))
        assert backend.sessions == []
        writer.close()
        await until(lambda: server.session_count == 0)


@pytest.mark.parametrize("kind", ["streams", "goodbyes"])
async def test_streams_and_goodbyes_that_nobody_waits_for_end_the_connection(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that begins streams and gives them up, or says goodbye over and over, breaks the protocol."""
    async with serving() as (server, backend):
        reader, writer = await upgraded(server.exec_url(run("hang")), V4)
        sender = _begun(writer)
        for stream_id in range(9, 2009, 2):
            if kind == "streams":
                writer.write(sender.write(frames.SynStream(stream_id, {})))
                writer.write(sender.write(frames.RstStream(stream_id, 5)))
            else:
                writer.write(sender.write(frames.GoAway(0, 0)))
        answer = await reader.read() if kind == "streams" else b""
        writer.close()
        await until(lambda: bool(backend.sessions) and backend.sessions[0].closed.is_set())
        await until(lambda: server.session_count == 0)

    assert kind == "goodbyes" or answer[-4:] == (1).to_bytes(4, "big")
    assert not caplog.records


@pytest.mark.parametrize("kinds", [("error", "error"), ("error", "what"), ("error", "resize")])
async def test_streams_that_the_command_does_not_have_end_the_connection(kinds: tuple[str, ...]) -> None:
    """Twice the same, unknown, or a size without a terminal."""
    async with serving() as (server, backend):
        async with spdy(server.exec_url(run("cat")), V4) as link:
            with contextlib.suppress(StreamResetError):
                for kind in kinds:
                    await opened(link, kind)
        await until(lambda: server.session_count == 0)

        assert backend.sessions == []


async def test_streams_that_do_not_come_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 30 s; here a tenth."""
    monkeypatch.setattr(spdycommand, "STREAMS_SECONDS", 0.1)
    async with serving() as (server, backend):
        async with spdy(server.exec_url(run("cat")), V4) as link:
            streams = await opened(link, "error")
            with pytest.raises(StreamResetError):
                await read_all(streams["error"])

        assert backend.sessions == []


async def test_a_version_that_is_not_ours_is_refused_in_words_that_clients_know() -> None:
    """And the token stays good."""
    async with serving() as (server, _):
        url = server.exec_url(run("fail"))
        with pytest.raises(Refused, match="unable to negotiate protocol") as refused:
            await upgraded(url, "v9.channel.k8s.io")
        async with spdy(url, V4) as link:
            streams = await opened(link, *COMMAND)
            out = await read_all(streams["stdout"])

        assert refused.value.status == 403
        assert out == b"out"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n", "404", id="no-such-token"),
        pytest.param("Connection: Upgrade\r\nUpgrade: SPDY/2\r\n", "426", id="another-protocol"),
        pytest.param(
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 5\r\n", "400", id="with-a-body"
        ),
        pytest.param(
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nTransfer-Encoding: chunked\r\n",
            "400",
            id="with-a-chunked-body",
        ),
    ],
)
async def test_a_refused_upgrade_closes_the_connection(head: str, status: str) -> None:
    """What follows is not taken for a request, nor for the stream."""
    async with serving() as (server, backend):
        place = server.base_url.removeprefix("http://")
        host, port = place.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        first = f"POST /exec/guess HTTP/1.1\r\nHost: {place}\r\n{head}\r\n"
        smuggled = server.exec_url(run("fail")).removeprefix(server.base_url)
        second = (
            f"POST {smuggled} HTTP/1.1\r\nHost: {place}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
        )
        writer.write((first + second).encode())
        answer = (await reader.read()).decode()
        writer.close()

        assert answer.split()[1] == status
        assert answer.count("HTTP/1.1") == 1
        assert backend.sessions == []


async def test_a_url_serves_its_own_verb_alone() -> None:
    """The token of a command forwards no ports."""
    async with serving() as (server, _):
        url = server.exec_url(run("fail")).replace("/exec/", "/portforward/")
        with pytest.raises(Refused) as refused:
            await upgraded(url, FORWARD)

        assert refused.value.status == 404


async def test_a_watcher_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attached container must not wait for it."""
    monkeypatch.setattr(command, "STALL_SECONDS", 0.2)
    async with serving() as (server, backend):
        request = StreamRequest(container_id="yes", stdin=False, stderr=False)
        async with spdy(server.attach_url(request), V4) as link:
            await opened(link, "error", "stdout")
            await until(lambda: bool(backend.sessions) and backend.sessions[0].closed.is_set())


@asynccontextmanager
async def program(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A program that listens on loopback; yields its port."""
    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read to the end, then answer in capitals: half-closing must work both ways."""
    writer.write((await reader.read()).upper())
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each piece."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


Connect = Callable[[str], contextlib.AbstractAsyncContextManager[Multiplexer]]


def by_spdy(url: str) -> contextlib.AbstractAsyncContextManager[Multiplexer]:
    """SPDY on the socket."""
    return spdy(url, FORWARD)


@pytest.mark.parametrize("connect", [by_spdy, tunnel], ids=["spdy", "tunnel"])
async def test_a_forwarded_connection_ends_each_half_by_itself(connect: Connect) -> None:
    """The program answers only after the client's end."""
    async with serving() as (server, _), program(upper) as port:
        async with connect(server.forward_url(ForwardRequest("box"))) as link:
            pair = await opened(link, "error", "data", port=str(port), requestID="0")
            pair["error"].end()
            await _write_and_end(pair["data"], b"hello")

            assert await read_all(pair["data"]) == b"HELLO"
            assert await read_all(pair["error"]) == b""


@pytest.mark.parametrize("connect", [by_spdy, tunnel], ids=["spdy", "tunnel"])
async def test_many_connections_pass_at_once_and_a_stuck_one_holds_nobody_up(connect: Connect) -> None:
    """Each has windows of its own."""
    async with serving() as (server, _), program(echo) as port:
        async with connect(server.forward_url(ForwardRequest("box"))) as link:
            stuck = await opened(link, "error", "data", port=str(port), requestID="stuck")
            async with asyncio.TaskGroup() as group:
                filler = group.create_task(stuck["data"].write(bytes(8 << 20)))
                tasks = [group.create_task(_one(link, port, index)) for index in range(50)]
                done = [await task for task in tasks]
                filler.cancel()

            assert done == [f"hello {index}".encode() * 1000 for index in range(50)]


async def _one(link: Multiplexer, port: int, index: int) -> bytes:
    pair = await opened(link, "error", "data", port=str(port), requestID=str(index))
    await _write_and_end(pair["data"], f"hello {index}".encode() * 1000)
    return await read_all(pair["data"])


async def test_a_port_where_nobody_listens_is_told_in_the_kubelets_words() -> None:
    """On the error stream; the next connection works."""
    async with serving() as (server, _), program(upper) as port:
        async with spdy(server.forward_url(ForwardRequest("box")), FORWARD) as link:
            pair = await opened(link, "error", "data", port="1", requestID="0")
            told = await read_all(pair["error"])
            data = await read_all(pair["data"])
            after = await opened(link, "error", "data", port=str(port), requestID="1")
            await _write_and_end(after["data"], b"x")

            assert told.startswith(
                b"error forwarding port 1 to pod box, uid : failed to connect to localhost:1"
            )
            assert data == b""
            assert await read_all(after["data"]) == b"X"


@pytest.mark.parametrize("port", ["0", "65536", "x", "", "-1", "٣"])
async def test_a_port_that_is_none_resets_the_stream(port: str) -> None:
    """Nothing is connected."""
    async with serving() as (server, _):
        async with spdy(server.forward_url(ForwardRequest("box")), FORWARD) as link:
            stream = link.open({"streamtype": "error", "port": port, "requestid": "1"})
            with pytest.raises(StreamResetError):
                await read_all(stream)


async def test_a_client_without_request_ids_pairs_by_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error stream comes right before its data stream."""
    async with serving() as (server, _), program(upper) as port:
        async with spdy(server.forward_url(ForwardRequest("box")), FORWARD) as link:
            first = await opened(link, "error", "data", port=str(port))
            second = await opened(link, "error", "data", port=str(port))
            await _write_and_end(second["data"], b"two")
            await _write_and_end(first["data"], b"one")

            assert [await read_all(pair["data"]) for pair in (first, second)] == [b"ONE", b"TWO"]


async def test_half_a_pair_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 30 s; here a tenth."""
    monkeypatch.setattr(forward, "PAIR_SECONDS", 0.1)
    async with serving() as (server, _):
        async with spdy(server.forward_url(ForwardRequest("box")), FORWARD) as link:
            pair = await opened(link, "data", port="80", requestID="0")
            with pytest.raises(StreamResetError):
                await read_all(pair["data"])


async def test_a_client_that_resets_a_connection_closes_it_inside() -> None:
    """And with the client's end all of them close."""
    closed = [asyncio.Event(), asyncio.Event()]
    waiting = list(closed)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = waiting.pop(0)
        await reader.read()
        writer.close()
        mine.set()

    async with serving() as (server, _), program(hold) as port:
        async with spdy(server.forward_url(ForwardRequest("box")), FORWARD) as link:
            first = await opened(link, "error", "data", port=str(port), requestID="0")
            await until(lambda: len(waiting) == 1)
            await opened(link, "error", "data", port=str(port), requestID="1")
            await until(lambda: not waiting)
            first["data"].reset()
            await closed[0].wait()
            assert not closed[1].is_set()
        await closed[1].wait()
        await until(lambda: server.session_count == 0)


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_ports_are_forwarded_on_websocket_channels(protocol: str) -> None:
    """Two channels a port, each begun by the port's number."""
    text = "base64" in protocol
    async with serving() as (server, _), program(echo) as port:
        url = server.forward_url(ForwardRequest("box", (port, 1)))
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=(protocol,)) as socket,
        ):
            number = port.to_bytes(2, "little")
            if text:
                await socket.send_str("0aGk=")
            else:
                await socket.send_bytes(b"\x00hi")
            messages = [await socket.receive() for _ in range(6)]

            assert socket.protocol == protocol
            received = {message.data for message in messages}
            expected = {b"\0" + number, b"\1" + number, b"\2\1\0", b"\3\1\0", b"\0hi"}
            if not text:
                assert expected <= received
                assert any(item.startswith(b"\3error forwarding port 1 to pod box") for item in received)
            else:
                assert {"0aGk=", "2AQA=", "3AQA="} <= received


async def test_streams_of_every_kind_leave_no_task_behind() -> None:
    """Ended by the command, by the client, and by the server's end of a forwarded connection."""
    before = len(asyncio.all_tasks())
    async with serving() as (server, backend), program(upper) as port:
        idle = len(asyncio.all_tasks())
        for _ in range(20):
            async with spdy(server.exec_url(run("fail")), V4) as link:
                await read_all((await opened(link, *COMMAND))["error"])
            with contextlib.suppress(StreamResetError):
                async with spdy(server.exec_url(run("hang")), V4) as link:
                    await opened(link, *COMMAND)
            async with spdy(server.forward_url(ForwardRequest("box")), FORWARD) as link:
                pair = await opened(link, "error", "data", port=str(port), requestID="0")
                await _write_and_end(pair["data"], b"x")
                await read_all(pair["error"])
        await until(lambda: server.session_count == 0 and len(asyncio.all_tasks()) <= idle)
        assert all(session.closed.is_set() for session in backend.sessions)
    await until(lambda: len(asyncio.all_tasks()) <= before)
