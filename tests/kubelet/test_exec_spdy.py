"""The kubelet's SPDY client for a command's streams, against our own streaming server and broken ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.kubelet.adapters.exec_spdy import SpdyExec, open_exec_spdy
from services.kubelet.adapters.exec_stream import ExecChannel, ExecStreamError
from services.kubelet.core.stream_options import Streams
from tests.kubelet.cri.streaming.test_streaming_server import run, serving

pytestmark = pytest.mark.asyncio


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


async def test_closing_ends_a_command_that_still_runs() -> None:
    """And what it holds."""
    async with serving() as (server, backend):
        client = await open_exec_spdy(server.exec_url(run("hang")), Streams(stdin=True))
        await client.close()
        await client.close()
        await backend.sessions[0].closed.wait()

    with pytest.raises(ExecStreamError, match="not ended"):
        _ = client.exit_code


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP 404"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "another protocol"),
        (b"nonsense\r\n\r\n", "HTTP"),
        (b"", "IncompleteReadError"),
        (b"x" * 200_000, "LimitOverrunError"),
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
    head = b"HTTP/1.1 101 Switching Protocols\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    async with answering(head) as url:
        async with await open_exec_spdy(url, Streams(stdin=True)) as client:
            with pytest.raises(ExecStreamError) as caught:
                _ = [item async for item in client]

    assert caught.value.reason == "EXEC_STREAM_BROKEN"
