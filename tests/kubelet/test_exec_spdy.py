"""The kubelet's SPDY client for a command's streams, against our own streaming server and broken ones."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from services.common.spdy.connection import Connection, StreamOpened
from services.kubelet.adapters.exec_spdy import PROTOCOL, SpdyExec, open_exec_spdy
from services.kubelet.adapters.exec_stream import ExecChannel, ExecStreamError
from services.kubelet.adapters.port_forward import open_port
from services.kubelet.core.stream_options import Streams
from tests.kubelet.cri.streaming.test_streaming_server import run, serving

pytestmark = pytest.mark.asyncio
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
Act = Callable[[], Awaitable[None]]
Write = Callable[[bytes], Awaitable[None]]


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that answers a request's head with some bytes and goes; yields its URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/exec/secret-token"


async def feed(client: SpdyExec, data: bytes) -> None:
    """Write an input and end it."""
    await client.write_stdin(data)
    await client.close_stdin()


async def write_on(client: SpdyExec) -> None:
    """Write until it is refused; the server's half may not have ended yet."""
    async with asyncio.timeout(5):
        while True:
            await client.write_stdin(b"too late")
            await asyncio.sleep(0)


async def test_output_comes_by_stream_and_the_exit_code_at_the_end() -> None:
    """A command that fails tells so in the status document."""
    async with serving() as (server, _):
        async with await open_exec_spdy(server.exec_url(run("fail")), Streams(stdin=True)) as client:
            output = [item async for item in client]

    assert sorted(output) == [(ExecChannel.STDOUT, b"out"), (ExecChannel.STDERR, b"err")]
    assert client.exit_code == 3


async def test_megabytes_pass_unchanged_both_ways() -> None:
    """More than all windows hold, and the end of the input ends the command."""
    data = bytes(range(256)) * 16384
    async with serving() as (server, _):
        async with await open_exec_spdy(server.exec_url(run("cat")), Streams(stdin=True)) as client:
            async with asyncio.TaskGroup() as group:
                group.create_task(feed(client, data))
                output = b"".join([chunk async for _, chunk in client])

    assert output == data
    assert client.exit_code == 0


async def test_an_input_that_comes_after_the_end_of_both_halves_is_refused() -> None:
    """Its writer must not wait for room that never comes."""
    async with serving() as (server, _):
        async with await open_exec_spdy(server.exec_url(run("cat")), Streams(stdin=True)) as client:
            await feed(client, b"in time")
            output = [item async for item in client]
            with pytest.raises(ExecStreamError, match="over"):
                await write_on(client)

    assert output == [(ExecChannel.STDOUT, b"in time")]


async def test_closing_ends_a_command_that_still_runs() -> None:
    """And what it holds."""
    async with serving() as (server, backend):
        client = await open_exec_spdy(server.exec_url(run("hang")), Streams(stdin=True))
        await client.close()
        await client.close()
        await backend.sessions[0].closed.wait()

    with pytest.raises(ExecStreamError, match="not ended"):
        _ = client.exit_code


@asynccontextmanager
async def deaf() -> AsyncIterator[str]:
    """A server that upgrades and then reads nothing; yields its URL."""
    over = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED)
        await over.wait()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/exec/secret-token"
        over.set()


async def a_command(url: str) -> tuple[Write, Act]:
    """Connect to a command; return how to write to it and how to close it."""
    client = await open_exec_spdy(url, Streams(stdin=True))
    return client.write_stdin, client.close


async def a_port(url: str) -> tuple[Write, Act]:
    """The same for a port of a pod."""
    port = await open_port(url, 80)
    return port.write, port.close


@pytest.mark.process
@pytest.mark.parametrize("connect", [a_command, a_port])
async def test_closing_waits_for_no_server_that_reads_no_more(
    connect: Callable[[str], Awaitable[tuple[Write, Act]]],
) -> None:
    """A program that does not read its input must not keep the caller's connection for ever."""
    async with deaf() as url:
        write, close = await connect(url)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await write(b"x" * (64 << 20))
        async with asyncio.timeout(10) as limit:
            await close()
            await close()
        assert not limit.expired()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP 404"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "another protocol"),
        (b"nonsense\r\n\r\n", "HTTP"),
        (b"", "went before it answered"),
        (b"x" * 200_000, "too long"),
    ],
)
async def test_a_server_that_refuses_is_told_without_the_token(answer: bytes, told: str) -> None:
    """With what it said, or how the connection broke."""
    async with answering(answer) as url:
        with pytest.raises(ExecStreamError, match=told) as caught:
            await open_exec_spdy(url, Streams(stdin=True))

    assert caught.value.reason == "EXEC_STREAM_REFUSED"
    assert "secret-token" not in str(caught.value)


async def test_a_connection_that_ends_without_a_status_is_an_error() -> None:
    """Output that was cut must not pass for a command that ended well."""
    async with answering(UPGRADED) as url:
        async with await open_exec_spdy(url, Streams(stdin=True)) as client:
            with pytest.raises(ExecStreamError) as caught:
                _ = [item async for item in client]

    assert caught.value.reason == "EXEC_STREAM_BROKEN"


class Resetting:
    """A server in a thread that tells how a command ended and cuts the connection, as Go's do."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.go = threading.Event()
        self.gone = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/exec/secret-token"

    def close(self) -> None:
        """Wait for its end."""
        self.go.set()
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        taken, _ = self._socket.accept()
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b""
        while b"\r\n\r\n" not in head:
            head += taken.recv(65536)
        lines = ("Upgrade: SPDY/3.1", "Connection: Upgrade", f"X-Stream-Protocol-Version: {PROTOCOL}")
        taken.sendall("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode())
        link, kinds = Connection(client=False), dict[str, int]()
        while len(kinds) < 4:
            for event in link.receive(taken.recv(65536)):
                if isinstance(event, StreamOpened):
                    kinds[event.headers["streamtype"]] = event.stream_id
                    link.reply(event.stream_id)
        taken.sendall(link.take_output())
        self.open.set()
        self.go.wait(10)
        link.send(kinds["stdout"], b"the last words", fin=True)
        link.send(kinds["stderr"], b"", fin=True)
        link.send(kinds["error"], b'{"status": "Success"}', fin=True)
        taken.sendall(link.take_output())
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        taken.close()
        self.gone.set()


@pytest.fixture
def resetting() -> Iterator[Resetting]:
    """Make one."""
    made = Resetting()
    yield made
    made.close()


async def test_what_was_told_before_a_reset_is_read_though_writing_fails(resetting: Resetting) -> None:
    """The input meets the reset before the client has read the status that came ahead of it."""
    async with await open_exec_spdy(resetting.url, Streams(stdin=True)) as client:
        await asyncio.to_thread(resetting.open.wait, 10)
        resetting.go.set()
        # The loop stands still meanwhile: all has come, and nothing has been read.
        assert resetting.gone.wait(10)
        await client.write_stdin(b"too late")
        output = [item async for item in client]

    assert output == [(ExecChannel.STDOUT, b"the last words")]
    assert client.exit_code == 0
