"""The command line as a person runs it: in a thread beside a test's servers, or as its own process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cli.main import run

_LIMIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


class _OfThread(io.StringIO):
    """Keeps what the thread that made it writes; what others write goes where it went before."""

    def __init__(self, before: TextIO) -> None:
        super().__init__()
        self._before = before
        self._thread = threading.get_ident()

    def write(self, text: str, /) -> int:
        """Keep or pass on."""
        return super().write(text) if threading.get_ident() == self._thread else self._before.write(text)


def _environment(run_directory: Path, environ: Mapping[str, str] | None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TRIPOD_")}
    return {**kept, "TRIPOD_RUN_DIRECTORY": str(run_directory), **(environ or {})}


@contextlib.contextmanager
def _within(environ: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def tripod(*words: str, run_directory: Path, environ: Mapping[str, str] | None = None) -> Ended:
    """Run `tripod` in a thread, against the node whose sockets lie in a folder."""

    def command() -> Ended:
        out, err = _OfThread(sys.stdout), _OfThread(sys.stderr)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(list(words))
        return Ended(code, out.getvalue(), err.getvalue())

    with _within(_environment(run_directory, environ)):
        return await asyncio.to_thread(command)


async def process(*words: str, run_directory: Path, environ: Mapping[str, str] | None = None) -> Ended:
    """Run `tripod` as a process of its own."""
    ran = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cli",
        *words,
        env=_environment(run_directory, environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_LIMIT_SECONDS):
        out, err = await ran.communicate()
    return Ended(ran.returncode or 0, out.decode(), err.decode())
