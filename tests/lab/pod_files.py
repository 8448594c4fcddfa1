"""Folders of pods on a real disk, with or without an engine to mount for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.kubelet.adapters.engine_space import EngineSpace
from services.kubelet.adapters.files import DiskFiles
from services.kubelet.adapters.volume_disk import VolumeDisk


def disk_files(state: Path) -> DiskFiles:
    """Make files of a node whose engine is elsewhere: nothing is mounted."""
    return DiskFiles(state, VolumeDisk(state, EngineSpace("")))


@asynccontextmanager
async def engine_socket(folder: Path) -> AsyncIterator[str]:
    """Serve a socket as an engine does, from this very process; returns its endpoint."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    path = folder / "engine.sock"
    server = await asyncio.start_unix_server(greet, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
        await server.wait_closed()
