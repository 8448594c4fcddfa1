"""Exec, Attach and PortForward on a real engine: what goes in comes out, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import RemoteError
from services.common.spdy.multiplex import SpdyStream, StreamResetError
from services.kubelet.adapters.exec_stream import ExecChannel, open_exec_stream
from services.kubelet.cri.execution import OUTPUT_LIMIT_BYTES
from tests.docker.test_cri_server import Server
from tests.kubelet.cri.streaming.spdy_client import FORWARD, V4, opened, read_all, spdy
from tests.lab.dockerd import EngineUnavailable, import_image
from tests.peers.client_go import client_go, needs_client_go

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
COMMAND = ("error", "stdin", "stdout", "stderr")
CYCLES = int(os.environ.get("TRIPOD_STREAM_CYCLES", "300"))
LIMIT_SECONDS = 90.0
# Threads that a pool of the server may still start, each with a connection to the engine.
POOLS = 8


@pytest.fixture(scope="module")
def busybox() -> Iterator[str]:
    """An image of busybox alone."""
    name = f"tripod-streams:{os.getpid()}"
    try:
        import_image(name)
    except EngineUnavailable as why:
        pytest.skip(str(why))
    yield name
    subprocess.run(["docker", "image", "rm", "-f", name], capture_output=True, check=False)


class Box:
    """A server, and a sandbox whose container `app` waits and whose `web` serves /etc on its loopback."""

    def __init__(self, server: Server, image: str) -> None:
        self.server = server
        self.image = image
        self.sandbox = ""
        self.app = ""

    async def prepare(self) -> None:
        """Run the sandbox and its containers."""
        self.sandbox = await self.server.sandbox()
        self.app = await self.run("app", "sleep", "100000")
        await self.run("web", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc")

    async def run(self, name: str, *command: str, **more: Any) -> str:
        """Create and start a container."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=self.image),
            command=list(command),
            log_path=f"{name}/0.log",
            **more,
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=self.sandbox, config=config)
        made = (await self.server.ask(self.server.runtime.CreateContainer, request)).container_id
        await self.server.ask(self.server.runtime.StartContainer, pb.StartContainerRequest(container_id=made))
        return str(made)

    async def exec_url(self, *command: str, tty: bool = False, stdin: bool = True) -> str:
        """Ask for a command."""
        request = pb.ExecRequest(
            container_id=self.app, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty
        )
        return str((await self.server.ask(self.server.runtime.Exec, request)).url)

    async def attach_url(self, container: str, *, stdin: bool = True, tty: bool = False) -> str:
        """Ask for a container's streams."""
        request = pb.AttachRequest(container_id=container, stdin=stdin, stdout=True, stderr=not tty, tty=tty)
        return str((await self.server.ask(self.server.runtime.Attach, request)).url)

    async def forward_url(self, sandbox: str = "") -> str:
        """Ask for a sandbox's ports."""
        request = pb.PortForwardRequest(pod_sandbox_id=sandbox or self.sandbox)
        return str((await self.server.ask(self.server.runtime.PortForward, request)).url)

    async def sync(self, *command: str, timeout: int = 30) -> pb.ExecSyncResponse:
        """Run a command to its end."""
        request = pb.ExecSyncRequest(container_id=self.app, cmd=command, timeout=timeout)
        answer: pb.ExecSyncResponse = await self.server.ask(self.server.runtime.ExecSync, request)
        return answer

    def usage(self) -> tuple[int, int]:
        """The server's open files and threads."""
        assert self.server._process is not None
        process = Path(f"/proc/{self.server._process.pid}")
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    async def settled(self, before: tuple[int, int]) -> None:
        """Wait until hardly more is open than before: the server's pools may have grown by a few threads."""

        async def no_more() -> bool:
            return all(now <= then + POOLS for now, then in zip(self.usage(), before, strict=True))

        try:
            await self.server.until(no_more)
        except TimeoutError:
            pytest.fail(f"files and threads: {before} before, {self.usage()} now")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> AsyncIterator[Box]:
    """One for all tests of this file."""
    server = Server(tmp_path_factory.mktemp("streams"))
    await server.start()
    try:
        made = Box(server, busybox)
        await made.prepare()
        # Pools fill with their threads, so that these do not look like leaks later.
        await asyncio.gather(*(made.sync("true") for _ in range(16)))
        yield made
    finally:
        await server.close()


def processes_like(mark: str) -> list[int]:
    """Processes of the host whose command line has these words."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and mark in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            ):
                found.append(int(entry.name))
    return found


@pytest.mark.fault("F38")
async def test_ten_thousand_lines_come_back_in_order(box: Box) -> None:
    """Over SPDY: each line is read and echoed by a shell."""
    lines = b"".join(f"line {index}\n".encode() for index in range(10_000))
    url = await box.exec_url("sh", "-c", 'while read -r line; do echo "$line"; done; exit 7')
    async with asyncio.timeout(LIMIT_SECONDS), spdy(url, V4) as link, asyncio.TaskGroup() as group:
        streams = await opened(link, *COMMAND)
        group.create_task(_write_and_end(streams["stdin"], lines))
        output = await read_all(streams["stdout"])
        status = json.loads(await read_all(streams["error"]))

    assert output == lines
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


async def _write_and_end(stream: SpdyStream, data: bytes) -> None:
    await stream.write(data)
    stream.end()


async def test_a_hundred_megabytes_pass_through_a_command(box: Box) -> None:
    """To `cat` and back, with the server's memory as it was."""
    piece = os.urandom(1 << 20)
    sent, received = hashlib.sha256(), hashlib.sha256()
    url = await box.exec_url("cat")
    before = _resident(box)

    async def write(stream: SpdyStream) -> None:
        for _ in range(100):
            sent.update(piece)
            await stream.write(piece)
        stream.end()

    async with asyncio.timeout(LIMIT_SECONDS), spdy(url, V4) as link, asyncio.TaskGroup() as group:
        streams = await opened(link, *COMMAND)
        group.create_task(write(streams["stdin"]))
        count = 0
        while data := await streams["stdout"].read():
            received.update(data)
            count += len(data)
        status = json.loads(await read_all(streams["error"]))

    assert count == 100 << 20
    assert received.digest() == sent.digest()
    assert status["status"] == "Success"
    assert _resident(box) - before < 32 << 20


async def test_a_gigabyte_passes_through_attach(box: Box) -> None:
    """Into a container that counts it, with the server's files, threads and memory as they were."""
    piece = os.urandom(1 << 20)
    counting = await box.run("counts", "sh", "-c", "wc -c", stdin=True, stdin_once=True)
    before, resident = box.usage(), _resident(box)
    url = await box.attach_url(counting)

    async def write(stream: SpdyStream) -> None:
        for _ in range(1024):
            await stream.write(piece)
        stream.end()

    async with asyncio.timeout(2 * LIMIT_SECONDS), spdy(url, V4) as link, asyncio.TaskGroup() as group:
        streams = await opened(link, *COMMAND)
        group.create_task(write(streams["stdin"]))
        output = await read_all(streams["stdout"])

    assert int(output) == 1 << 30
    assert (await box.server.ended(counting)).exit_code == 0
    assert _resident(box) - resident < 32 << 20
    await box.settled(before)


def _resident(box: Box) -> int:
    assert box.server._process is not None
    pages = Path(f"/proc/{box.server._process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def test_the_kubelets_own_client_runs_commands(box: Box) -> None:
    """By WebSocket, as `PodService.Exec` does."""
    url = await box.exec_url("sh", "-c", "cat; echo err >&2; exit 3")
    async with await open_exec_stream(url) as client:
        await client.write_stdin(b"hello")
        await client.close_stdin()
        output = [item async for item in client]

    assert sorted(output, key=lambda item: item[0]) == [
        (ExecChannel.STDOUT, b"hello"),
        (ExecChannel.STDERR, b"err\n"),
    ]
    assert client.exit_code == 3


async def test_a_terminal_takes_the_size_that_comes_first_and_later(box: Box) -> None:
    """Also when it comes before the command has started."""
    script = 'while [ "$(busybox stty size 2>&1)" != "43 132" ]; do sleep 0.1; done; echo resized'
    url = await box.exec_url("sh", "-c", script, tty=True)
    async with asyncio.timeout(LIMIT_SECONDS), spdy(url, V4) as link:
        streams = await opened(link, "error", "stdin", "stdout", "resize")
        await streams["resize"].write(b'{"Width":132,"Height":43}')

        assert await read_all(streams["stdout"]) == b"resized\r\n"


async def test_keys_that_docker_would_hold_back_reach_the_terminal(box: Box) -> None:
    """Control-p and control-q are history and flow control, not "detach"."""
    url = await box.exec_url("sh", "-c", "busybox stty raw -echo; echo go; head -c 2", tty=True)
    async with asyncio.timeout(LIMIT_SECONDS), spdy(url, V4) as link:
        streams = await opened(link, "error", "stdin", "stdout", "resize")
        begun = b""
        while b"go" not in begun:
            begun += await streams["stdout"].read()
        await streams["stdin"].write(b"\x10\x11")

        assert (begun + await read_all(streams["stdout"])).endswith(b"\x10\x11")


async def test_a_command_that_times_out_leaves_no_process(box: Box) -> None:
    """With children, grandchildren, and one that its parent left behind."""
    mark = f"77{os.getpid()}"
    script = f"sleep {mark}1 & sh -c 'sleep {mark}2 & sleep {mark}3' & (sleep {mark}4 &); wait"
    with pytest.raises(RemoteError) as caught:
        await box.sync("sh", "-c", script, timeout=1)

    assert caught.value.reason == "EXEC_TIMEOUT"
    assert processes_like(mark) == []


async def test_output_beyond_a_messages_size_is_cut_and_the_command_goes_on(box: Box) -> None:
    """Both outputs together, since one answer carries them."""
    script = "yes | head -c 12000000; yes | head -c 12000000 >&2; exit 5"
    answer = await box.sync("sh", "-c", script, timeout=60)

    assert answer.exit_code == 5
    assert len(answer.stdout) == 12_000_000
    assert len(answer.stdout) + len(answer.stderr) == OUTPUT_LIMIT_BYTES


@pytest.mark.fault("F38")
async def test_a_client_that_vanishes_leaves_nothing(box: Box) -> None:
    """No process, no file, no thread; by SPDY and by WebSocket."""
    mark = f"88{os.getpid()}"
    before = box.usage()
    for turn in range(6):
        await asyncio.gather(*(_vanish(box, f"{mark}{turn}{index}") for index in range(4)))

    async def gone() -> bool:
        return not processes_like(mark)

    await box.server.until(gone)
    await box.settled(before)


async def _vanish(box: Box, seconds: str) -> None:
    """Start a command by SPDY and one by WebSocket, and go without a word."""
    with contextlib.suppress(StreamResetError):
        async with spdy(await box.exec_url("sleep", f"{seconds}1"), V4) as link:
            await opened(link, *COMMAND)
            await box.server.until(lambda: _there(f"{seconds}1"))
    client = await open_exec_stream(await box.exec_url("sleep", f"{seconds}2"))
    await box.server.until(lambda: _there(f"{seconds}2"))
    await client.close()


async def _there(mark: str) -> bool:
    return bool(processes_like(mark))


async def test_attaching_reaches_a_containers_input_and_letting_go_does_not_stop_it(box: Box) -> None:
    """The next one is attached to the same process."""
    cat = await box.run("cat", "cat", stdin=True)
    for turn in (b"one\n", b"two\n"):
        with contextlib.suppress(StreamResetError):
            async with spdy(await box.attach_url(cat), V4) as link:
                streams = await opened(link, *COMMAND)
                await streams["stdin"].write(turn)

                assert await streams["stdout"].read() == turn
    assert (await box.server.status(cat)).state == pb.CONTAINER_RUNNING


async def test_an_input_that_stays_open_outlives_its_clients_end(box: Box) -> None:
    """The container reads no end, and its output goes on."""
    script = "while read -r line; do sleep 0.3; echo $line; done; echo ended"
    kept = await box.run("kept", "sh", "-c", script, stdin=True)
    async with asyncio.timeout(LIMIT_SECONDS), spdy(await box.attach_url(kept), V4) as link:
        streams = await opened(link, *COMMAND)
        await _write_and_end(streams["stdin"], b"input\n")

        assert await streams["stdout"].read() == b"input\n"
    assert (await box.server.status(kept)).state == pb.CONTAINER_RUNNING


async def test_an_input_that_is_open_once_ends_with_the_first_client(box: Box) -> None:
    """`stdinOnce`: the container reads its end, and what it then writes still arrives."""
    script = "cat; echo ended"
    once = await box.run("once", "sh", "-c", script, stdin=True, stdin_once=True)
    async with asyncio.timeout(LIMIT_SECONDS), spdy(await box.attach_url(once), V4) as link:
        streams = await opened(link, *COMMAND)
        await _write_and_end(streams["stdin"], b"input\n")

        assert await read_all(streams["stdout"]) == b"input\nended\n"
        assert json.loads(await read_all(streams["error"])) == {"metadata": {}, "status": "Success"}
    assert (await box.server.ended(once)).exit_code == 0


async def test_a_watcher_that_stops_reading_does_not_freeze_the_container(box: Box) -> None:
    """It is dropped after ten seconds, and the container writes on."""
    script = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /n; head -c 4000 /bin/busybox; done"
    busy = await box.run("busy", "sh", "-c", script)
    async with asyncio.timeout(LIMIT_SECONDS), spdy(await box.attach_url(busy, stdin=False), V4) as link:
        streams = await opened(link, "error", "stdout", "stderr")
        with pytest.raises(StreamResetError):
            await read_all(streams["error"])
    first = await _number(box, busy)

    async def counts_on() -> bool:
        return await _number(box, busy) > first

    await box.server.until(counts_on)
    await box.server.ask(box.server.runtime.StopContainer, pb.StopContainerRequest(container_id=busy))


async def _number(box: Box, container: str) -> int:
    request = pb.ExecSyncRequest(container_id=container, cmd=["cat", "/n"], timeout=10)
    return int((await box.server.ask(box.server.runtime.ExecSync, request)).stdout or 0)


GET = b"GET /passwd HTTP/1.0\r\n\r\n"


async def test_ports_on_a_pods_loopback_are_reached(box: Box) -> None:
    """Without any program for it in the container; many at once."""
    async with asyncio.timeout(LIMIT_SECONDS), spdy(await box.forward_url(), FORWARD) as link:

        async def one(index: int) -> bytes:
            pair = await opened(link, "error", "data", port="8080", requestID=str(index))
            await _write_and_end(pair["data"], GET)
            return await read_all(pair["data"])

        answers = await asyncio.gather(*(one(index) for index in range(20)))

    assert all(b"nobody:x:65534" in answer for answer in answers)


async def test_a_port_where_nobody_listens_says_so(box: Box) -> None:
    """With both families' reasons; the session goes on."""
    async with asyncio.timeout(LIMIT_SECONDS), spdy(await box.forward_url(), FORWARD) as link:
        pair = await opened(link, "error", "data", port="81", requestID="0")
        told = (await read_all(pair["error"])).decode()

    words = (
        f"error forwarding port 81 to pod {box.sandbox}, uid : failed to connect to localhost:81 inside "
        f"namespace '{box.sandbox}', IPv4: dial tcp4 127.0.0.1:81: connect: connection refused IPv6: dial"
    )
    assert told.startswith(words)


async def test_ports_of_a_pod_on_the_hosts_network_are_the_hosts(box: Box) -> None:
    """No namespace is entered."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"host")
        writer.close()

    config = box.server.sandbox_config("hosted")
    config.linux.security_context.namespace_options.network = pb.NODE
    made = await box.server.ask(box.server.runtime.RunPodSandbox, pb.RunPodSandboxRequest(config=config))
    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with asyncio.timeout(LIMIT_SECONDS), listener:
        port = str(listener.sockets[0].getsockname()[1])
        async with spdy(await box.forward_url(made.pod_sandbox_id), FORWARD) as link:
            pair = await opened(link, "error", "data", port=port, requestID="0")

            assert await read_all(pair["data"]) == b"host"


@pytest.mark.fault("F39")
async def test_hundreds_of_streams_leave_the_server_as_it_was(box: Box) -> None:
    """Attached and forwarded in turn, and dropped without a word."""
    cat = await box.run("cycled", "cat", stdin=True)
    await _cycle(box, cat)
    before = box.usage()
    for _ in range(CYCLES // 10):
        await asyncio.gather(*(_cycle(box, cat) for _ in range(10)))

    await box.settled(before)
    assert (await box.server.status(cat)).state == pb.CONTAINER_RUNNING


async def _cycle(box: Box, container: str) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        with contextlib.suppress(StreamResetError):
            async with spdy(await box.attach_url(container), V4) as link:
                await opened(link, *COMMAND)
        with contextlib.suppress(StreamResetError):
            async with spdy(await box.forward_url(), FORWARD) as link:
                pair = await opened(link, "error", "data", port="8080", requestID="0")
                await pair["data"].write(GET)
                assert await pair["data"].read()


@needs_client_go
@pytest.mark.parametrize("mode", ["exec", "ws-exec"])
async def test_kubernetes_client_runs_a_command(box: Box, mode: str) -> None:
    """Input to its end, both outputs, the exit code."""
    url = await box.exec_url("sh", "-c", "cat; echo err >&2; exit 9")
    answer = await client_go(mode, url, "-stdin", data=b"from client-go\n" * 50_000)

    assert answer.output == b"from client-go\n" * 50_000
    assert answer.error.startswith(b"err\n")
    assert answer.code == 9


@needs_client_go
@pytest.mark.parametrize("mode", ["exec", "ws-exec"])
async def test_kubernetes_client_has_a_terminal(box: Box, mode: str) -> None:
    """Of the size that it tells."""
    script = 'while [ "$(busybox stty size 2>&1)" != "43 132" ]; do sleep 0.1; done; echo sized'
    url = await box.exec_url("sh", "-c", script, tty=True)
    answer = await client_go(mode, url, "-tty", "-stdin", "-sizes", "132x43")

    assert (answer.output, answer.code) == (b"sized\r\n", 0)


@needs_client_go
@pytest.mark.parametrize("mode", ["attach", "ws-attach"])
async def test_kubernetes_client_attaches(box: Box, mode: str) -> None:
    """To a container whose input ends with it."""
    once = await box.run(f"go-{mode}", "sh", "-c", "cat; echo bye", stdin=True, stdin_once=True)
    answer = await client_go(mode, await box.attach_url(once), "-stdin", data=b"hi\n")

    assert (answer.output, answer.code) == (b"hi\nbye\n", 0)


@needs_client_go
@pytest.mark.parametrize("mode", ["forward", "ws-forward"])
async def test_kubernetes_client_forwards_a_port(box: Box, mode: str) -> None:
    """By SPDY, and by SPDY inside a WebSocket."""
    answer = await client_go(mode, await box.forward_url(), "-port", "8080", "-count", "10", data=GET)

    assert answer.output.count(b"nobody:x:65534") == 10
    assert answer.code == 0
