"""Commands in containers: with streams for the streaming server, or to their end for `ExecSync`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.common.errors import Code
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.dockerstream import STDERR, Demultiplexer
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import CriError, EngineTimeoutError
from services.kubelet.cri.streaming.session import ExecStream, StreamRequest

_OUTPUT_LIMIT_BYTES = 16 << 20
_READ_BYTES = 65_536
_INSPECT_SECONDS = 5.0
_PROMPT_SECONDS = 1.0


class DockerExecSession:
    """One command over the engine's raw socket. Implements `ExecSession`."""

    def __init__(
        self,
        client: DockerClient,
        exec_id: str,
        pipes: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        *,
        tty: bool,
    ) -> None:
        self._client = client
        self._exec_id = exec_id
        self._reader, self._writer = pipes
        self._tty = tty

    async def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        """Yield output until the command has ended."""
        frames = Demultiplexer()
        while data := await self._read():
            if self._tty:
                yield ExecStream.STDOUT, data
                continue
            for kind, payload in frames.feed(data):
                yield ExecStream.STDERR if kind == STDERR else ExecStream.STDOUT, payload

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
        """End the standard input."""
        if self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size."""
        await self._client.exec_resize(self._exec_id, width, height)

    async def exit_code(self) -> int:
        """Return the exit code; the engine may need a moment after the output's end."""
        deadline = asyncio.get_running_loop().time() + _INSPECT_SECONDS
        while True:
            state = await self._client.exec_inspect(self._exec_id)
            if not state.get("Running") and state.get("ExitCode") is not None:
                return int(state["ExitCode"])
            if asyncio.get_running_loop().time() > deadline:
                raise CriError(
                    "The command's output ended, but it still runs",
                    code=Code.DEADLINE_EXCEEDED,
                    reason="EXEC_STILL_RUNNING",
                )
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Release the connection."""
        self._writer.close()


class DockerExec:
    """Starts commands. Implements `ExecBackend`."""

    def __init__(self, client: DockerClient, streams: EngineStreams) -> None:
        self._client = client
        self._streams = streams

    async def open(self, request: StreamRequest) -> DockerExecSession:
        """Start a command with its streams."""
        if not request.command:
            raise CriError("Attaching is not served", code=Code.UNIMPLEMENTED, reason="ATTACH_NOT_SERVED")
        config = {
            "AttachStdin": request.stdin,
            "AttachStdout": request.stdout,
            "AttachStderr": request.stderr and not request.tty,
            "Tty": request.tty,
            "Cmd": list(request.command),
        }
        exec_id = await self._client.exec_create(request.container_id, config)
        pipes = await self._streams.hijack(f"/exec/{exec_id}/start", {"Detach": False, "Tty": request.tty})
        return DockerExecSession(self._client, exec_id, pipes, tty=request.tty)

    async def run(
        self, container_id: str, command: tuple[str, ...], timeout_seconds: float | None
    ) -> tuple[bytes, bytes, int]:
        """Run a command to its end; returns its outputs and exit code.

        Output beyond 16 MiB is dropped, as kubelets do. Raises `EXEC_TIMEOUT`.
        """
        session = await self.open(StreamRequest(container_id=container_id, command=command))
        outputs = {ExecStream.STDOUT: bytearray(), ExecStream.STDERR: bytearray()}
        try:
            async with asyncio.timeout(timeout_seconds):
                async for kind, data in session.output():
                    room = _OUTPUT_LIMIT_BYTES - len(outputs[kind])
                    outputs[kind] += data[:room]
                code = await session.exit_code()
        except TimeoutError as error:
            await self._see_engine()
            raise CriError(
                f"Command {command[0]!r} timed out after {timeout_seconds:g} s",
                code=Code.DEADLINE_EXCEEDED,
                reason="EXEC_TIMEOUT",
            ) from error
        finally:
            await session.close()
        return bytes(outputs[ExecStream.STDOUT]), bytes(outputs[ExecStream.STDERR]), code

    async def _see_engine(self) -> None:
        """Raise when it may be the engine that takes too long, not the command."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await self._client.version()
        if loop.time() - begin > _PROMPT_SECONDS:
            raise EngineTimeoutError("exec", _PROMPT_SECONDS)
