"""Commands without containers: each is an async generator that reads input and yields output.

Obeys `ExecBackend`: nothing is produced that is not asked for, input waits until it is read, an unknown
container is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from services.common.errors import Code, TripodError
from services.kubelet.cri.streaming.session import ExecStream, Pipes, StreamRequest

Program = Callable[["FakeSession"], AsyncIterator[tuple[ExecStream, bytes]]]


class FakeSession:
    """One running program, and what has been done to it."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._stdin: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self.code = 0
        self.produced_count = 0
        self.deaf = False
        self.sizes: list[tuple[int, int]] = []
        self.resized = asyncio.Event()
        self.closed = asyncio.Event()

    async def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        """Run the program as far as its reader wants."""
        async for item in self._program(self):
            self.produced_count += 1
            yield item

    async def read(self) -> bytes:
        """Give the program its next input; b"" at the end."""
        return await self._stdin.get()

    async def write_stdin(self, data: bytes) -> None:
        """Wait for the program to read, unless it has closed its input."""
        if self.deaf:
            raise BrokenPipeError
        await self._stdin.put(data)

    async def close_stdin(self) -> None:
        """End the program's input."""
        await self._stdin.put(b"")

    async def resize(self, width: int, height: int) -> None:
        """Take the size down."""
        self.sizes.append((width, height))
        self.resized.set()

    async def exit_code(self) -> int:
        """Return what the program set."""
        return self.code

    async def close(self) -> None:
        """Take down that it was closed."""
        self.closed.set()


class FakeBackend:
    """Runs the program named by the command's first word, or attaches to the one named by the container."""

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = programs
        self.sessions: list[FakeSession] = []

    async def open(self, request: StreamRequest) -> FakeSession:
        """Start a program; "gone" is a container that does not run."""
        if request.container_id == "gone":
            raise TripodError(
                "Container gone is not running", code=Code.FAILED_PRECONDITION, reason="NOT_RUNNING"
            )
        session = FakeSession(self._programs[(request.command or (request.container_id,))[0]])
        self.sessions.append(session)
        return session


async def cat(session: FakeSession) -> AsyncIterator[tuple[ExecStream, bytes]]:
    """Copy input to output until the input ends."""
    while data := await session.read():
        yield ExecStream.STDOUT, data


async def fail(session: FakeSession) -> AsyncIterator[tuple[ExecStream, bytes]]:
    """Write to both outputs and exit with 3."""
    yield ExecStream.STDOUT, b"out"
    yield ExecStream.STDERR, b"err"
    session.code = 3


async def yes(_: FakeSession) -> AsyncIterator[tuple[ExecStream, bytes]]:
    """Write without end, 64 KiB at a time."""
    while True:
        yield ExecStream.STDOUT, b"y\n" * 32768


async def hang(session: FakeSession) -> AsyncIterator[tuple[ExecStream, bytes]]:
    """Say that it is up, then neither read nor write nor end."""
    yield ExecStream.STDOUT, b"up"
    await session.closed.wait()


async def head(session: FakeSession) -> AsyncIterator[tuple[ExecStream, bytes]]:
    """Read once, close the input, then write a lot."""
    first = await session.read()
    session.deaf = True
    for _ in range(100):
        await asyncio.sleep(0)
        yield ExecStream.STDOUT, first


PROGRAMS: Mapping[str, Program] = {"cat": cat, "fail": fail, "yes": yes, "hang": hang, "head": head}


class FakePorts:
    """Ports without a sandbox: those of the test's own host. Implements `ForwardBackend`."""

    async def connect(self, sandbox_id: str, port: int) -> Pipes:
        """Connect to a port of loopback; "gone" is a sandbox that does not run."""
        if sandbox_id == "gone":
            raise TripodError(
                "Sandbox gone is not ready", code=Code.FAILED_PRECONDITION, reason="NOT_RUNNING"
            )
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError as err:
            raise TripodError(
                f"failed to connect to localhost:{port}: {err.strerror}",
                code=Code.UNAVAILABLE,
                reason="PORT_REFUSED",
            ) from err
