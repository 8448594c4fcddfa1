"""Commands in containers, with streams or to their end, and the streams of containers themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from services.common.errors import Code, TripodError
from services.common.logs import get_logger
from services.kubelet.cri import processes
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.dockerstream import STDERR, FrameError, PieceDemultiplexer
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import CriError, EngineRefusedError, EngineTimeoutError
from services.kubelet.cri.streaming.session import ExecSession, ExecStream, StreamRequest

log = get_logger(__name__)

# Both outputs and what the answer adds must fit into the 16 MiB that a gRPC message may have.
OUTPUT_LIMIT_BYTES: Final = (16 << 20) - 4096
_READ_BYTES: Final = 65_536
_INSPECT_SECONDS: Final = 5.0
_RESIZE_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.02
_PROMPT_SECONDS: Final = 1.0
# With a terminal the engine holds keys back that may begin its "detach", which no client of ours means; this
# one begins with a key that is on no keyboard.
DETACH_KEYS: Final = "ctrl-^,ctrl-_,ctrl-^,ctrl-_,ctrl-^,ctrl-_"

Pipes = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _EngineStreams:
    """Input and outputs over one raw connection of the engine.

    At the end of our half the engine ends the outputs too, unless it ends an input by that: a pipe that is
    this client's alone (moby, daemon/container/stream/attach.go). Everything else is left open.
    """

    def __init__(self, pipes: Pipes, *, tty: bool, own_stdin: bool) -> None:
        self._reader, self._writer = pipes
        self._tty = tty
        self._own_stdin = own_stdin and not tty

    async def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        """Yield output until its end."""
        frames = PieceDemultiplexer()
        while data := await self._read():
            if self._tty:
                yield ExecStream.STDOUT, data
                continue
            try:
                for kind, payload in frames.feed(data):
                    yield ExecStream.STDERR if kind == STDERR else ExecStream.STDOUT, payload
            except FrameError as error:
                raise CriError(
                    f"The engine's stream cannot be read: {error}",
                    code=Code.UNKNOWN,
                    reason="ENGINE_STREAM_BROKEN",
                ) from error

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_READ_BYTES)
        except ConnectionError:
            return b""

    async def write_stdin(self, data: bytes) -> None:
        """Write to the standard input."""
        self._writer.write(data)
        await self._writer.drain()

    async def close_stdin(self) -> None:
        """End the standard input, where it has an end."""
        if self._own_stdin and self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()

    def cut(self) -> None:
        """Release the connection at once; what was not written is of no use any more."""
        self._writer.transport.abort()


class DockerExecSession(_EngineStreams):
    """One command. Implements `ExecSession`."""

    def __init__(
        self, client: DockerClient, container_id: str, exec_id: str, pipes: Pipes, *, tty: bool
    ) -> None:
        super().__init__(pipes, tty=tty, own_stdin=True)
        self._client = client
        self._container_id = container_id
        self._exec_id = exec_id
        self._ended = False

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; the engine may need a moment after the start."""
        deadline = asyncio.get_running_loop().time() + _RESIZE_SECONDS
        while True:
            try:
                return await self._client.exec_resize(self._exec_id, width, height)
            except EngineRefusedError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_LOOK_SECONDS)

    async def exit_code(self) -> int:
        """Return the exit code; the engine may need a moment after the output's end."""
        deadline = asyncio.get_running_loop().time() + _INSPECT_SECONDS
        while True:
            state = await self._client.exec_inspect(self._exec_id)
            if not state.get("Running") and state.get("ExitCode") is not None:
                self._ended = True
                return int(state["ExitCode"])
            if asyncio.get_running_loop().time() > deadline:
                raise CriError(
                    "The command's output ended, but it still runs",
                    code=Code.DEADLINE_EXCEEDED,
                    reason="EXEC_STILL_RUNNING",
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def close(self) -> None:
        """Release the connection, and end a command that still runs."""
        self.cut()
        if not self._ended:
            self._ended = True
            # Whoever waits may be cancelled; the command ends all the same.
            await asyncio.shield(end_exec(self._client, self._container_id, self._exec_id))


async def end_exec(client: DockerClient, container_id: str, exec_id: str) -> None:
    """Kill a command that runs or is about to, with all that it started, and see it gone; logs what fails."""
    running = False
    try:
        async with asyncio.timeout(_INSPECT_SECONDS):
            while True:
                state = await client.exec_inspect(exec_id)
                running = bool(state.get("Running"))
                # Without an exit code it is still to be started.
                if not running and state.get("ExitCode") is not None:
                    return
                if (pid := int(state.get("Pid") or 0)) and running:
                    await asyncio.to_thread(processes.end_command, pid, container_id)
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        if running:
            log.warning("Could not end a command", container_id=container_id, exec_id=exec_id)
    except TripodError as error:
        # As after the container's end, with which the command ended.
        log.info("Could not look after a command", container_id=container_id, error=error.message)


class DockerAttachSession(_EngineStreams):
    """A container's own streams. Implements `ExecSession`; the container outlives it."""

    def __init__(self, client: DockerClient, request: StreamRequest, pipes: Pipes) -> None:
        super().__init__(pipes, tty=request.tty, own_stdin=request.stdin_once)
        self._client = client
        self._container_id = request.container_id

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size."""
        await self._client.resize(self._container_id, width, height)

    async def exit_code(self) -> int:
        """Return 0: that the streams ended is no failure, whatever the container's end was."""
        return 0

    async def close(self) -> None:
        """Let go of the container."""
        self.cut()


class DockerExec:
    """Starts commands and attaches to containers. Implements `ExecBackend`."""

    def __init__(self, client: DockerClient, streams: EngineStreams) -> None:
        self._client = client
        self._streams = streams

    async def open(self, request: StreamRequest) -> ExecSession:
        """Start a command with its streams, or attach."""
        return await (self._start(request) if request.command else self._attach(request))

    async def _start(self, request: StreamRequest) -> DockerExecSession:
        exec_id = await self._client.exec_create(request.container_id, _exec_config(request))
        try:
            pipes = await self._streams.hijack(
                f"/exec/{exec_id}/start", {"Detach": False, "Tty": request.tty}
            )
        except EngineRefusedError:
            raise
        except BaseException:
            # The engine may have got the request and started it.
            await asyncio.shield(end_exec(self._client, request.container_id, exec_id))
            raise
        return DockerExecSession(self._client, request.container_id, exec_id, pipes, tty=request.tty)

    async def _attach(self, request: StreamRequest) -> DockerAttachSession:
        wanted = {
            "stream": "1",
            "logs": "0",
            "stdin": "1" if request.stdin else "0",
            "stdout": "1" if request.stdout else "0",
            "stderr": "1" if request.stderr and not request.tty else "0",
            "detachKeys": DETACH_KEYS,
        }
        path = f"/containers/{request.container_id}/attach?{urlencode(wanted)}"
        pipes = await self._streams.hijack(path, None)
        return DockerAttachSession(self._client, request, pipes)

    async def run(
        self, container_id: str, command: tuple[str, ...], timeout_seconds: float | None
    ) -> tuple[bytes, bytes, int]:
        """Run a command to its end; returns its outputs and exit code.

        Output beyond what one answer can carry is dropped and logged; the command goes on. Raises
        `EXEC_TIMEOUT`, and then nothing of the command runs any more.
        """
        outputs = _Outputs()
        try:
            async with asyncio.timeout(timeout_seconds):
                code = await self._run(container_id, command, outputs)
        except TimeoutError as error:
            await self._see_engine()
            raise CriError(
                f"Command {command[0]!r} timed out after {timeout_seconds:g} s",
                code=Code.DEADLINE_EXCEEDED,
                reason="EXEC_TIMEOUT",
            ) from error
        if outputs.dropped_bytes:
            log.warning(
                "Cut the output of a command",
                container_id=container_id,
                command=command[0],
                limit_bytes=OUTPUT_LIMIT_BYTES,
                dropped_bytes=outputs.dropped_bytes,
            )
        return outputs.of(ExecStream.STDOUT), outputs.of(ExecStream.STDERR), code

    async def _run(self, container_id: str, command: tuple[str, ...], outputs: _Outputs) -> int:
        session = await self.open(StreamRequest(container_id=container_id, command=command))
        try:
            async for kind, data in session.output():
                outputs.add(kind, data)
            return await session.exit_code()
        finally:
            await session.close()

    async def _see_engine(self) -> None:
        """Raise when it may be the engine that takes too long, not the command."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await self._client.version()
        if loop.time() - begin > _PROMPT_SECONDS:
            raise EngineTimeoutError("exec", _PROMPT_SECONDS)


class _Outputs:
    """Both outputs of a command, as far as one answer can carry them."""

    def __init__(self) -> None:
        self._kept = {kind: bytearray() for kind in ExecStream}
        self._room = OUTPUT_LIMIT_BYTES
        self.dropped_bytes = 0

    def add(self, kind: ExecStream, data: bytes) -> None:
        kept = data[: self._room]
        self._kept[kind] += kept
        self._room -= len(kept)
        self.dropped_bytes += len(data) - len(kept)

    def of(self, kind: ExecStream) -> bytes:
        return bytes(self._kept[kind])


def _exec_config(request: StreamRequest) -> Mapping[str, Any]:
    return {
        "AttachStdin": request.stdin,
        "AttachStdout": request.stdout,
        "AttachStderr": request.stderr and not request.tty,
        "Tty": request.tty,
        "Cmd": list(request.command),
        "DetachKeys": DETACH_KEYS,
    }
