"""The files in which containers leave their last words. Implements the kubelet's `LastWords`.

A container may write there what it likes, and whoever mounts the node's folders may lay
anything in a file's place: see `beneath`.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from services.common.beneath import open_file
from services.common.errors import Code
from services.kubelet.core import last_words, volumes
from services.kubelet.core.model import Container, Pod
from services.kubelet.core.observed import ObservedContainer
from services.kubelet.errors import KubeletError

# Whoever the container runs as may write.
_FILE_MODE = 0o666
# Lines of a log have a time and a stream before what was said.
_LOG_BLOCK_BYTES = last_words.LOG_BYTES + last_words.LOG_LINES * 64


class DiskLastWords:
    """Works under the state directory, whose path is the same on the host."""

    def __init__(self, state: Path) -> None:
        self._state = state

    async def prepare(self, pod: Pod, container: Container, attempt: int) -> None:
        """Make an attempt's empty file, and remove those of attempts that nobody asks for any more."""
        await asyncio.to_thread(self._prepare, pod, container, attempt)

    def _prepare(self, pod: Pod, container: Container, attempt: int) -> None:
        file = last_words.message_file(self._state, pod.uid, container.name, attempt)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            for old in file.parent.iterdir():
                if old.name.isdecimal() and int(old.name) < attempt - 1:
                    old.unlink(missing_ok=True)
            if not file.exists():
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                file.chmod(_FILE_MODE)
        except OSError as error:
            raise KubeletError(
                f"Cannot make the file for the last words of container {container.name}: {error}",
                code=Code.UNAVAILABLE,
                reason="VOLUME_FAILED",
            ) from error

    async def read(self, pod: Pod, container: Container, ended: ObservedContainer) -> str:
        """Return what an ended container said; empty where it said nothing, or it cannot be read."""
        return await asyncio.to_thread(self._read, pod, container, ended)

    def _read(self, pod: Pod, container: Container, ended: ObservedContainer) -> str:
        uid, name, attempt = pod.uid, ended.name, ended.attempt
        file = last_words.message_file(self._state, uid, name, attempt)
        limit = last_words.limit_bytes(pod)
        said = _end_of(self._state, file, last_words.MESSAGE_BYTES)
        if not said.strip() and last_words.falls_back(container, ended.exit_code):
            log = volumes.log_directory(self._state, pod) / volumes.log_path(name, attempt)
            said = last_words.from_log(_end_of(volumes.log_root(self._state), log, _LOG_BLOCK_BYTES))
        return last_words.text(said, limit)


def _end_of(root: Path, path: Path, count: int) -> bytes:
    """Return the last bytes of a file, which must be a regular one."""
    with suppress(OSError):
        descriptor = open_file(root, path)
        try:
            size = os.fstat(descriptor).st_size
            return os.pread(descriptor, count, max(0, size - count))
        finally:
            os.close(descriptor)
    return b""
