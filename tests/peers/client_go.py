"""Kubernetes' own client, as a program: `make peers` builds it from `streampeer/`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / ".peers/streampeer"
needs_client_go = pytest.mark.skipif(not PROGRAM.exists(), reason="client-go is not built: run `make peers`")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client printed, and its exit code: the command's, or 125 with the reason on `error`."""

    output: bytes
    error: bytes
    code: int


async def client_go(mode: str, url: str, *flags: str, data: bytes = b"", limit_seconds: float = 60) -> Answer:
    """Run the client to its end with `data` as its input."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        mode,
        *flags,
        url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(limit_seconds):
            output, error = await process.communicate(data)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Answer(output, error, process.returncode)
