"""What the streaming server needs of the engine: commands and their streams, and connections to ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class ExecStream(Enum):
    """Which of a command's outputs bytes came from."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What to run, or with an empty `command` attach to. With `tty`, error output joins the output.

    `stdin_once` tells whether an attached container's input ends with its first client's.
    """

    container_id: str
    command: tuple[str, ...] = ()
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    stdin_once: bool = False


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """Ports of a sandbox. Only clients of WebSocket channels need them named beforehand."""

    sandbox_id: str
    ports: tuple[int, ...] = ()


class ExecSession(Protocol):
    """One running command. The caller closes it, whatever happened."""

    def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        """Yield output in order until the command has ended. Nothing is read that is not asked for."""
        ...

    async def write_stdin(self, data: bytes) -> None:
        """Write to the standard input; waits while the command does not read.

        Raises `ConnectionError` once the command has closed its input.
        """
        ...

    async def close_stdin(self) -> None:
        """End the standard input; the output goes on. May be repeated."""
        ...

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in columns and rows."""
        ...

    async def exit_code(self) -> int:
        """Return the exit code, once the output has ended."""
        ...

    async def close(self) -> None:
        """Release the streams. A command that still runs is ended, a container is not. May be repeated."""
        ...


class ExecBackend(Protocol):
    """Starts commands in containers."""

    async def open(self, request: StreamRequest) -> ExecSession:
        """Start the command, or attach. Raises `TripodError` when the container does not run."""
        ...


Pipes = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ForwardBackend(Protocol):
    """Connects to what listens inside sandboxes."""

    async def connect(self, sandbox_id: str, port: int) -> Pipes:
        """Connect to `localhost` inside. The caller closes. Raises `TripodError` saying what did not work."""
        ...
