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
_CHUNK_BYTES: Final = 65_536


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
    process = await asyncio.create_subprocess_exec(
        program,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environment),
        cwd="/",
        start_new_session=True,
        pass_fds=() if lease is None else (lease,),
    )
    try:
        if started is not None:
            started(process.pid)
        async with asyncio.TaskGroup() as group:
            output = group.create_task(_output(process))
            complaint = group.create_task(_complaint(process))
            group.create_task(_feed(process, data))
            code = group.create_task(process.wait())
    except BaseExceptionGroup as many:
        raise many.exceptions[0] from many
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return Outcome(code.result(), output.result(), complaint.result())


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None, "asked for"
    # A plugin need not read what it does not care for.
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()
    with suppress(BrokenPipeError, ConnectionResetError):
        await process.stdin.wait_closed()


async def _output(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None, "asked for"
    found = bytearray()
    while chunk := await process.stdout.read(_CHUNK_BYTES):
        found += chunk
        if len(found) > OUTPUT_LIMIT_BYTES:
            raise OutputTooLongError
    return bytes(found)


async def _complaint(process: asyncio.subprocess.Process) -> bytes:
    assert process.stderr is not None, "asked for"
    found = b""
    while chunk := await process.stderr.read(_CHUNK_BYTES):
        found = (found + chunk)[-_COMPLAINT_BYTES:]
    return found
