"""The kubelet's client for a command's streams, where a server misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from services.kubelet.adapters.exec_stream import (
    ExecChannel,
    ExecStreamError,
    NoHalfCloseError,
    open_exec_stream,
    parse_status,
)

pytestmark = pytest.mark.asyncio

LIMIT_SECONDS = 10.0


@asynccontextmanager
async def serving(
    behave: Callable[[web.WebSocketResponse], Awaitable[None]],
    *,
    protocols: tuple[str, ...] = ("v5.channel.k8s.io",),
) -> AsyncIterator[str]:
    """A server that does as the test says; yields its URL."""

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=protocols)
        await socket.prepare(request)
        await behave(socket)
        return socket

    application = web.Application()
    application.router.add_get("/exec/secret-token", handle)
    runner = web.AppRunner(application, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/exec/secret-token"
    finally:
        await runner.cleanup()


async def test_a_connection_that_ends_without_a_status_is_an_error() -> None:
    """Output that was cut must not pass for a command that ended well."""

    async def behave(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"\x01half")

    async with serving(behave) as url, await open_exec_stream(url) as client:
        output = aiter(client)
        first = await anext(output)
        with pytest.raises(ExecStreamError) as broken:
            await anext(output)
        with pytest.raises(ExecStreamError):
            _ = client.exit_code

    assert first == (ExecChannel.STDOUT, b"half")
    assert broken.value.reason == "EXEC_STREAM_BROKEN"


async def test_unknown_and_empty_messages_are_passed_over() -> None:
    """Servers announce their streams with empty messages, and newer ones may have more channels."""

    async def behave(socket: web.WebSocketResponse) -> None:
        for message in (b"\x01", b"", b"\x09new", b"\x02err", b'\x03{"status":"Success"}'):
            await socket.send_bytes(message)
        await socket.send_str("text")

    async with serving(behave) as url, await open_exec_stream(url) as client:
        output = [item async for item in client]

    assert output == [(ExecChannel.STDERR, b"err")]
    assert client.exit_code == 0


async def test_the_end_of_the_input_is_not_sent_to_a_server_of_version_4() -> None:
    """It would take it for data of an unknown channel, or for a fault."""
    received: list[bytes] = []

    async def behave(socket: web.WebSocketResponse) -> None:
        received.append((await socket.receive()).data)
        await socket.send_bytes(b'\x03{"status":"Success"}')

    async with (
        serving(behave, protocols=("v4.channel.k8s.io",)) as url,
        await open_exec_stream(url) as client,
    ):
        await client.close_stdin()
        await client.write_stdin(b"data")
        _ = [item async for item in client]

    assert received == [b"\x00data"]


async def test_a_server_without_our_subprotocols_is_refused() -> None:
    """Without one the meaning of the bytes is not agreed."""

    async def behave(socket: web.WebSocketResponse) -> None:
        await socket.receive()

    async with serving(behave, protocols=()) as url:
        with pytest.raises(ExecStreamError, match="no subprotocol"):
            await open_exec_stream(url)


async def test_an_error_never_tells_the_token() -> None:
    """The URL is as good as the command."""

    async def behave(_: web.WebSocketResponse) -> None:
        return None

    async with serving(behave) as url:
        base = url.removesuffix("/exec/secret-token")
    refusals = []
    for void in (url, f"{base}/secret-token", "http://127.0.0.1:1/secret-token", "no-url/secret-token"):
        with pytest.raises(ExecStreamError) as refused:
            await open_exec_stream(void)
        refusals.append(f"{refused.value} {refused.value.metadata}")

    assert [text for text in refusals if "secret-token" in text] == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(b'{"metadata":{},"status":"Success"}', 0, id="success"),
        pytest.param(
            b'{"status":"Failure","reason":"NonZeroExitCode",'
            b'"details":{"causes":[{"reason":"Other","message":"x"},{"reason":"ExitCode","message":"137"}]}}',
            137,
            id="exit-code",
        ),
    ],
)
async def test_a_status_tells_the_exit_code(document: bytes, expected: int) -> None:
    """As Kubernetes writes it."""
    assert parse_status(document) == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param(b'{"status":"Failure","message":"no such file"}', "no such file", id="not-run"),
        pytest.param(b'{"status":"Failure"}', "no reason given", id="no-message"),
        pytest.param(b"", "cannot be read", id="empty"),
        pytest.param(b"[]", "cannot be read", id="other-shape"),
        pytest.param(
            b'{"status":"Failure","reason":"NonZeroExitCode"}', "cannot be read", id="without-causes"
        ),
    ],
)
async def test_any_other_status_is_an_error_with_its_message(document: bytes, message: str) -> None:
    """A command that could not be run has no exit code."""
    with pytest.raises(ExecStreamError, match=message) as failed:
        parse_status(document)

    assert failed.value.reason == "EXEC_FAILED"


async def test_a_server_that_cannot_end_an_input_runs_nothing_for_a_command_that_has_one() -> None:
    """It is refused before: asked again in another way, the command would run twice."""
    began: list[bool] = []

    async def behave(socket: web.WebSocketResponse) -> None:
        began.append(socket.ws_protocol is not None)

    async with serving(behave, protocols=("v4.channel.k8s.io",)) as url:
        with pytest.raises(NoHalfCloseError):
            await open_exec_stream(url, half_close=True)

    assert True not in began


@pytest.mark.parametrize("status", [404, 429, 500])
async def test_a_server_that_refuses_for_another_reason_is_not_taken_for_an_old_one(status: int) -> None:
    """Too many streams, a token that is used up: SPDY would meet the same."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status)

    application = web.Application()
    application.router.add_get("/exec/secret-token", handle)
    runner = web.AppRunner(application, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(ExecStreamError, match=f"HTTP {status}") as caught:
            await open_exec_stream(
                f"http://127.0.0.1:{runner.addresses[0][1]}/exec/secret-token", half_close=True
            )
    finally:
        await runner.cleanup()

    assert not isinstance(caught.value, NoHalfCloseError)
