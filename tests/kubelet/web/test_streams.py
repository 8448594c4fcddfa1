"""Commands and ports through the secure port, with Kubernetes' own client and with raw ones."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from services.common.remotecommand.negotiation import TUNNEL
from services.kubelet.core.stream_options import Streams
from tests.kubelet.cri.streaming.spdy_client import V4, opened, read_all, spdy, tunnel, upgraded
from tests.kubelet.cri.streaming.test_streaming_server import raw
from tests.kubelet.web.port import Port, held, secure, start_pod
from tests.lab.tls import plain_door, spdy_door
from tests.peers.client_go import client_go, needs_client_go
from tests.waiting import until

pytestmark = pytest.mark.asyncio
EXEC = pytest.mark.parametrize("mode", ["exec", "ws-exec"])
FORWARD = pytest.mark.parametrize("mode", ["forward", "ws-forward"])


@asynccontextmanager
async def door(folder: Path) -> AsyncIterator[tuple[Port, str]]:
    """A port with a running pod, and a URL of it without TLS, for the administrator."""
    async with secure(folder) as port:
        await start_pod(port)
        async with plain_door(port.number, port.admin) as plain:
            yield port, f"http://127.0.0.1:{plain}"


@asynccontextmanager
async def old_runtime(folder: Path) -> AsyncIterator[tuple[Port, str]]:
    """The same, with a runtime that speaks SPDY alone, as containerd 1.6 does for clients of version 5."""
    async with door(folder) as (port, url), spdy_door(port.runtime.server.base_url) as base:
        port.runtime.base_url = base
        yield port, url


@needs_client_go
@EXEC
async def test_outputs_and_the_exit_code_arrive(tmp_path: Path, mode: str) -> None:
    """Each output by itself, without an input."""
    async with door(tmp_path) as (_, url):
        answer = await client_go(mode, f"{url}/exec/default/web/app?command=fail&output=1&error=1")

    assert (answer.output, answer.code) == (b"out", 3)
    assert answer.error.startswith(b"err")


@needs_client_go
@EXEC
async def test_the_input_ends_while_the_output_goes_on(tmp_path: Path, mode: str) -> None:
    """Megabytes of it, which must all come back; the pod's UID may stand in the path."""
    data = os.urandom(8 << 20)
    async with door(tmp_path) as (port, url):
        path = f"/exec/default/web/{port.pod.uid}/app?command=cat&input=1&output=1&error=1"
        answer = await client_go(mode, url + path, "-stdin", data=data)

    assert answer.output == data
    assert (answer.error, answer.code) == (b"", 0)


@needs_client_go
@pytest.mark.parametrize("mode", ["attach", "ws-attach"])
async def test_attaching_works_the_same(tmp_path: Path, mode: str) -> None:
    """By a path of its own."""
    async with door(tmp_path) as (_, url):
        path = "/attach/default/web/app?input=1&output=1&error=1"
        answer = await client_go(mode, url + path, "-stdin", data=b"to the container")

    assert (answer.output, answer.error, answer.code) == (b"to the container", b"", 0)


@needs_client_go
@FORWARD
async def test_ports_are_forwarded_many_times_at_once(tmp_path: Path, mode: str) -> None:
    """Each half ends by itself: the program answers after the client's end."""

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async with door(tmp_path) as (_, url), await asyncio.start_server(upper, "127.0.0.1", 0) as listener:
        number = listener.sockets[0].getsockname()[1]
        flags = ("-port", str(number), "-count", "40")
        answer = await client_go(mode, f"{url}/portForward/default/web", *flags, data=b"abc" * 30_000)

    assert answer.output == b"ABC" * 30_000 * 40
    assert answer.code == 0


@needs_client_go
async def test_a_websocket_client_of_a_runtime_that_speaks_only_spdy_is_translated(tmp_path: Path) -> None:
    """Input, its end, both outputs, the exit code."""
    data = os.urandom(4 << 20)
    async with old_runtime(tmp_path) as (_, url):
        path = f"{url}/exec/default/web/app?input=1&output=1&error=1"
        failed = await client_go("ws-exec", f"{path}&command=fail")
        echoed = await client_go("ws-exec", f"{path}&command=cat", "-stdin", data=data)
        attached = await client_go("ws-attach", path.replace("exec", "attach"), "-stdin", data=b"to it")

    assert (failed.output, failed.code) == (b"out", 3)
    assert failed.error.startswith(b"err")
    assert (echoed.output, echoed.error, echoed.code) == (data, b"", 0)
    assert (attached.output, attached.code) == (b"to it", 0)


@needs_client_go
async def test_a_translated_terminal_has_its_sizes(tmp_path: Path) -> None:
    """In order."""
    async with old_runtime(tmp_path) as (port, url):
        path = f"{url}/exec/default/web/app?command=cat&input=1&output=1&tty=1"
        flags = ("-tty", "-stdin", "-sizes", "80x24,132x43")
        answer = await client_go("ws-exec", path, *flags, data=b"x" * 100_000)
        sizes = port.backend.sessions[-1].sizes

    assert answer.output == b"x" * 100_000
    assert sizes == [(80, 24), (132, 43)]


@needs_client_go
async def test_a_tunnel_to_a_runtime_that_speaks_only_spdy_carries_ports(tmp_path: Path) -> None:
    """Many connections, each with its own end."""

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async with old_runtime(tmp_path) as (_, url), await asyncio.start_server(upper, "127.0.0.1", 0) as there:
        number = there.sockets[0].getsockname()[1]
        flags = ("-port", str(number), "-count", "20")
        answer = await client_go("ws-forward", f"{url}/portForward/default/web", *flags, data=b"abc" * 30_000)

    assert answer.output == b"ABC" * 30_000 * 20


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"])
@pytest.mark.parametrize("old", [False, True], ids=["as-it-is", "translated"])
async def test_every_channel_protocol_is_served(tmp_path: Path, protocol: str, old: bool) -> None:
    """With a status document, or with words before version 4."""
    async with (old_runtime if old else door)(tmp_path) as (_, url), asyncio.timeout(10):
        path = f"{url}/exec/default/web/app?command=fail&output=1&error=1"
        async with raw(path, protocol) as socket:
            assert socket.protocol == protocol
            found = [message.data async for message in socket]

    told = {bytes([channel]): b"".join(m[1:] for m in found if m[0] == channel) for channel in (1, 2, 3)}
    assert (told[b"\1"], told[b"\2"]) == (b"out", b"err")
    if protocol == "channel.k8s.io":
        assert told[b"\3"] == b"command terminated with non-zero exit code: 3"
    else:
        assert json.loads(told[b"\3"])["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]


async def test_a_port_of_websocket_channels_is_named_beforehand(tmp_path: Path) -> None:
    """The runtime is told which; without one the client is told."""
    async with door(tmp_path) as (port, url), asyncio.timeout(10):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with raw(f"{url}/portForward/default/web", "v4.channel.k8s.io"):
                pass
        async with raw(f"{url}/portForward/default/web?port=1", "v4.channel.k8s.io") as socket:
            first = (await socket.receive()).data
        async with tunnel(f"{url}/portForward/default/web"):
            pass

    assert caught.value.status == 400
    assert first == b"\0\1\0"
    assert port.runtime.asked == [(1,), ()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/exec/default/web/app?command=x", (400, "you must specify at least 1 of stdin, stdout, stderr\n")),
        ("/exec/default/web/app?output=1", (400, "you must specify a command\n")),
        ("/exec/default/none/app?command=x&output=1", (404, "pod does not exist\n")),
        ("/exec/default/web/other-uid/app?command=x&output=1", (404, "pod not found\n")),
        ("/exec/default/web/idle?command=x&output=1", (404, 'container not found ("idle")\n')),
        ("/attach/default/web/none?output=1", (404, 'container not found ("none")\n')),
        ("/portForward/default/none", (404, "pod does not exist\n")),
        (
            "/exec/default/web/app?command=x&output=1",
            (400, "unable to upgrade: missing upgrade headers in request\n"),
        ),
    ],
)
async def test_what_cannot_be_joined_is_told(tmp_path: Path, path: str, expected: tuple[int, str]) -> None:
    """Before the runtime is asked."""
    async with secure(tmp_path) as port:
        await start_pod(port)
        answer = await port.get(path, port.admin, method="POST")

        assert answer == expected
        assert port.runtime.asked == []


async def test_a_refusal_of_the_runtime_is_passed_on_and_the_connection_closed(tmp_path: Path) -> None:
    """With the versions that it would take."""
    async with secure(tmp_path) as port, port.session() as session:
        await start_pod(port)
        headers = {"Upgrade": "SPDY/3.1", "Connection": "Upgrade", "X-Stream-Protocol-Version": "v9"}
        path = "/exec/default/web/app?command=cat&output=1"
        async with session.post(port.url(path), headers=headers) as answer:
            assert answer.status == 403
            assert "unable to negotiate protocol" in await answer.text()
            assert V4 in answer.headers["X-Accepted-Stream-Protocol-Versions"]
            assert answer.headers["Connection"] == "close"


async def test_the_older_run_answers_with_the_output(tmp_path: Path) -> None:
    """Of a command that is split at spaces."""
    async with secure(tmp_path) as port:
        await start_pod(port)

        assert await port.get("/run/default/web/app?cmd=true", port.admin, method="POST") == (200, "")
        status, words = await port.get("/run/default/web/app?cmd=a+b", port.admin, method="POST")

    assert (status, words) == (500, "command 'a b' exited with 1: no\n")


async def test_the_runtime_learns_which_streams_there_are_and_no_token(tmp_path: Path) -> None:
    """Flags are `1`; a terminal has no error output of its own."""
    async with door(tmp_path) as (port, url), asyncio.timeout(10):
        async with raw(f"{url}/exec/default/web/app?command=fail&output=1&error=1&tty=1", V4) as socket:
            await socket.receive()

    assert port.runtime.asked == [Streams(tty=True, stderr=False)]


async def test_an_offer_in_other_letters_is_passed_on_as_it_came(tmp_path: Path) -> None:
    """A runtime that does not know it chooses another."""
    async with door(tmp_path) as (_, url), asyncio.timeout(10):
        async with raw(f"{url}/exec/default/web/app?command=fail&output=1", V4, "\u20ac") as socket:
            chosen = socket.protocol

    assert chosen == V4


async def test_a_command_may_be_a_whole_script(tmp_path: Path) -> None:
    """It comes in the request's line, which may be as long as the original takes it."""
    async with door(tmp_path) as (port, url), asyncio.timeout(10):
        script = "echo%20" * 15_000
        async with raw(f"{url}/exec/default/web/app?command=fail&command={script}&output=1", V4) as socket:
            await socket.receive()

    assert len(port.runtime.asked) == 1


@pytest.mark.parametrize("mode", ["cut", "closed", "runtime"])
async def test_when_either_end_goes_nothing_is_left(tmp_path: Path, mode: str) -> None:
    """Neither files nor tasks, nor a session at the runtime: fifty times."""
    async with door(tmp_path) as (port, url), asyncio.timeout(30):
        path = f"{url}/exec/default/web/app?command=hang&input=1&output=1&error=1"
        before = (0, 0)
        for _ in range(50):
            reader, writer = await upgraded(path, V4)
            await until(lambda: port.runtime.server.session_count == 1)
            if mode == "cut":
                writer.transport.abort()
            elif mode == "closed":
                writer.close()
            else:
                for task in tuple(port.runtime.server._running):
                    task.cancel()
                await reader.read()
                writer.close()
            await until(lambda: port.runtime.server.session_count == 0)
            before = before if before[0] else held()

        await until(lambda: held() <= before)


@pytest.mark.parametrize("old", [False, True], ids=["as-it-is", "translated"])
async def test_a_websocket_that_goes_leaves_nothing(tmp_path: Path, old: bool) -> None:
    """Translated or not."""
    async with (old_runtime if old else door)(tmp_path) as (port, url), asyncio.timeout(30):
        path = f"{url}/exec/default/web/app?command=hang&input=1&output=1&error=1"
        before = (0, 0)
        for _ in range(30):
            async with raw(path, "v5.channel.k8s.io") as socket:
                await socket.receive()
                assert port.runtime.server.session_count == 1
            await until(lambda: port.runtime.server.session_count == 0)
            await until(lambda: all(s.closed.is_set() for s in port.backend.sessions))
            before = before if before[0] else held()

        await until(lambda: held() <= before)


@pytest.mark.parametrize("old", [False, True], ids=["as-it-is", "translated"])
async def test_a_client_that_does_not_read_stops_the_command(tmp_path: Path, old: bool) -> None:
    """What is held is what fits in buffers, and it goes on when the client does."""
    async with (old_runtime if old else door)(tmp_path) as (port, url), asyncio.timeout(30):
        path = f"{url}/exec/default/web/app?command=yes&output=1&error=1"
        async with raw(path, "v5.channel.k8s.io") as socket:
            await until(lambda: bool(port.backend.sessions))
            count = -1
            while count != port.backend.sessions[0].produced_count:
                count = port.backend.sessions[0].produced_count
                await asyncio.sleep(0.3)  # nothing is to happen
            assert count < 1000
            for _ in range(2000):
                await socket.receive()
            assert port.backend.sessions[0].produced_count > count


@pytest.mark.process
async def test_an_input_that_is_not_read_stops_the_client(tmp_path: Path) -> None:
    """The kubelet holds no more of it than buffers take."""
    async with door(tmp_path) as (port, url), asyncio.timeout(30):
        path = f"{url}/exec/default/web/app?command=hang&input=1&output=1&error=1"
        async with spdy(path, V4) as link:
            streams = await opened(link, "error", "stdin", "stdout", "stderr")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await streams["stdin"].write(b"x" * (256 << 20))
        await until(lambda: port.runtime.server.session_count == 0)


@pytest.mark.process
async def test_a_gigabyte_through_the_port_needs_no_memory(tmp_path: Path) -> None:
    """Out and in, at once."""
    async with door(tmp_path) as (_, url), asyncio.timeout(100):
        path = f"{url}/exec/default/web/app?command=cat&input=1&output=1&error=1"
        block = os.urandom(1 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with spdy(path, V4) as link, asyncio.TaskGroup() as group:
            streams = await opened(link, "error", "stdin", "stdout", "stderr")

            async def feed() -> None:
                for _ in range(1024):
                    await streams["stdin"].write(block)
                streams["stdin"].end()

            group.create_task(feed())
            count = 0
            while data := await streams["stdout"].read():
                count += len(data)
            status = json.loads(await read_all(streams["error"]))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert count == 1 << 30
    assert status["status"] == "Success"
    assert grown < 64 << 10


async def test_a_websocket_that_cannot_begin_leaves_nothing_at_the_runtime(tmp_path: Path) -> None:
    """Its tunnel was open there before the client's headers were found to be no WebSocket's."""
    async with old_runtime(tmp_path) as (port, url), asyncio.timeout(30):
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Protocol": TUNNEL}
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/portForward/default/web", headers=headers) as answer:
                status = answer.status
        await until(lambda: port.runtime.server.session_count == 0)

    assert status == 400
