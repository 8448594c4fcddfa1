"""Log files of containers on the node's disk. Implements the kubelet's `LogFiles`."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from services.common.errors import Code
from services.kubelet.errors import KubeletError


class DiskLogFiles:
    """Works on one container's folder at a time."""

    async def sizes(self, folder: Path) -> Mapping[str, int]:
        """Return the files in a folder with their sizes; nothing for a folder that is not there."""
        return await asyncio.to_thread(_sizes, folder)

    async def move(self, source: Path, target: Path) -> None:
        """Give a file another name, which must be free. Raises `KubeletError`."""
        await asyncio.to_thread(_move, source, target)

    async def remove(self, path: Path) -> None:
        """Remove a file. An absent one is no error."""
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _sizes(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                state = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(state.st_mode):
                    found[entry.name] = state.st_size
    except OSError:
        return {}
    return found


def _move(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
        source.unlink()
    except OSError as error:
        raise KubeletError(
            f"Cannot rotate the log {source}: {error.strerror}",
            code=Code.UNAVAILABLE,
            reason="LOG_ROTATION_FAILED",
        ) from error
