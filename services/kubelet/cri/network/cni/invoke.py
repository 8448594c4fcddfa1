"""Run one plugin: a program by its path, never a shell, its whole environment given, a bound on all it says.

A plugin may start others (`bridge` runs `host-local`); it gets a process group of its own, so that none of
them outlives a plugin that was given up on. Source: CNI specification 1.1.0, section 2.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OUTPUT_LIMIT_BYTES: Final = 1 << 20
_COMPLAINT_BYTES: Final = 8192


class OutputTooLongError(Exception):
    """A plugin printed more than any result has."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a plugin ended (negative: by a signal), what it printed, and the end of what it complained."""

    code: int
    output: bytes
    complaint: bytes


def find(kind: str, folders: Sequence[Path]) -> Path | None:
    """Return the program of a plugin in the first folder that has it."""
    for folder in folders:
        path = folder / kind
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


async def run(
    program: Path,
    data: bytes,
    environment: Mapping[str, str],
    *,
    lease: int | None = None,
    started: Callable[[int], None] | None = None,
) -> Outcome:
    """Run a plugin to its end; killed with all it has started when this is cancelled.

    `lease` is a descriptor that it inherits, which shows that it, or what it started, still runs; `started`
    is told its process id. Raises `OSError` when it cannot be started, `OutputTooLongError`.
    """
    transport, plugin = await asyncio.get_running_loop().subprocess_exec(
        _Plugin,
        program,
        env=dict(environment),
        cwd="/",
        start_new_session=True,
        pass_fds=() if lease is None else (lease,),
    )
    try:
        if started is not None:
            started(transport.get_pid())
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport), "asked for by default"
        stdin.write(data)
        stdin.write_eof()
        await plugin.told
    finally:
        if not plugin.exited.done():
            with suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
        # What it has started may hold its output open; ours ends here.
        transport.close()
        await plugin.exited
    return Outcome(transport.get_returncode() or 0, bytes(plugin.output), plugin.complaint)


class _Plugin(asyncio.SubprocessProtocol):
    """Gathers what a plugin says. `told` is done when it has ended and its output with it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.told: asyncio.Future[None] = loop.create_future()
        self.output = bytearray()
        self.complaint = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Keep the output whole, and the end of the complaint."""
        if fd == 2:
            self.complaint = (self.complaint + data)[-_COMPLAINT_BYTES:]
        elif len(self.output) + len(data) <= OUTPUT_LIMIT_BYTES:
            self.output += data
        elif not self.told.done():
            self.told.set_exception(OutputTooLongError())

    def process_exited(self) -> None:
        """Note the end of the process."""
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of its output, which comes last."""
        if not self.told.done():
            self.told.set_result(None)
