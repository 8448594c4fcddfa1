"""Log files of containers on the node's disk. Implements the kubelet's `LogFiles`."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from services.common.errors import Code
from services.kubelet.errors import KubeletError

_FEW = 200


class DiskLogFiles:
    """Works on one container's folder at a time."""

    async def sizes(self, folder: Path) -> Mapping[str, int]:
        """Return the files in a folder with their sizes; nothing for a folder that is not there."""
        return await asyncio.to_thread(_sizes, folder)

    async def oversized(self, paths: Sequence[Path], limit_bytes: int) -> Collection[Path]:
        """Return the files that have as many bytes or more; an absent one has none."""
        # A look at the size of a few local files costs less than the way to a thread.
        if len(paths) <= _FEW:
            return _oversized(paths, limit_bytes)
        return await asyncio.to_thread(_oversized, paths, limit_bytes)

    async def move(self, source: Path, target: Path) -> None:
        """Give a file another name, which must be free. Raises `KubeletError`."""
        await asyncio.to_thread(_move, source, target)

    async def remove(self, path: Path) -> None:
        """Remove a file. An absent one is no error."""
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _oversized(paths: Sequence[Path], limit_bytes: int) -> set[Path]:
    found = set()
    for path in paths:
        with suppress(OSError):
            if os.lstat(path).st_size >= limit_bytes:
                found.add(path)
    return found


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
