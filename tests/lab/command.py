"""The command line as a person runs it: its own process, so that nothing else writes to its output."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LIMIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


async def tripod(*words: str, run_directory: Path, environ: Mapping[str, str] | None = None) -> Ended:
    """Run `tripod` against the node whose sockets lie in a folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TRIPOD_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cli",
        *words,
        env={**kept, "TRIPOD_RUN_DIRECTORY": str(run_directory), **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_LIMIT_SECONDS):
        out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())
