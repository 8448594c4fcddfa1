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
    plugin = _Plugin()
    descriptors = () if lease is None else (lease,)
    try:
        # asyncio waits for ever when it is cancelled while it connects the pipes.
        await asyncio.shield(plugin.start(program, environment, descriptors))
        if started is not None:
            started(plugin.pid)
        plugin.feed(data)
        await plugin.told
    finally:
        await plugin.end()
    return Outcome(plugin.code, bytes(plugin.output), plugin.complaint)


class _Plugin(asyncio.SubprocessProtocol):
    """A plugin's process, and what it says. `told` is done when it has ended and its output with it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.told: asyncio.Future[None] = loop.create_future()
        self.output = bytearray()
        self.complaint = b""
        self._begun = asyncio.Event()
        self._exited = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 before the start."""
        return self._transport.get_pid() if self._transport else 0

    @property
    def code(self) -> int:
        """How it ended."""
        return (self._transport.get_returncode() or 0) if self._transport else 0

    async def start(
        self, program: Path, environment: Mapping[str, str], descriptors: tuple[int, ...]
    ) -> None:
        """Start the process. Raises `OSError`."""
        try:
            self._transport, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: self,
                program,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
                pass_fds=descriptors,
            )
        finally:
            self._begun.set()

    def feed(self, data: bytes) -> None:
        """Give it its input, which it need not read."""
        stdin = self._transport.get_pipe_transport(0) if self._transport else None
        assert isinstance(stdin, asyncio.WriteTransport), "asked for by default"
        stdin.write(data)
        stdin.write_eof()

    async def end(self) -> None:
        """Kill it with all it has started, if it still runs, and close what is ours."""
        await self._begun.wait()
        if self._transport is None:
            return
        if not self._exited.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        # What it has started may hold its output open; ours ends here.
        self._transport.close()
        await self._exited.wait()

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
        self._exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of its output, which comes last."""
        if not self.told.done():
            self.told.set_result(None)
