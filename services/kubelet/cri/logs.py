"""Container output to CRI log files.

One connection for each stream of a container reads `logs?follow=1` from the
cursor; the file's own end is the cursor after a restart, so nothing is lost or
doubled. The end of a follow means nothing until the container has stopped and
reading again brings nothing (the engine may end one early while it rotates).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Collection, Iterator
from functools import partial
from pathlib import Path

from services.common import failpoints
from services.common.beneath import open_file
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.cri import logformat
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.dockerstream import Demultiplexer, LineSplitter
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.logformat import Cursor, Skipper, rotated

log = get_logger(__name__)
_OPEN = failpoints.step("cri.log.open")
_WRITE = failpoints.step("cri.log.write")
_STREAMS = {1: "stdout", 2: "stderr"}
_TAIL_BYTES = 1 << 20
# As the kubelet lays it out: root/pod/container/attempt.log.
_ROOT_DEPTH = 2
# So often that a stream's cursor lies in the file's tail, or beside the file.
_SAVE_BYTES = _TAIL_BYTES // 4
_RETRY_SECONDS = 0.2
# Output is written this often at most: hundreds of containers that log line by line wake us together.
_BEAT_SECONDS = 0.2
_DRAIN_SECONDS = 5.0


class LogFile:
    """One container's log file: entries are appended whole."""

    def __init__(self, path: Path, cursor_file: Path) -> None:
        self._path = path
        self._cursor_file = cursor_file
        self._fresh = cursor_file.with_suffix(".new")
        self._fresh.unlink(missing_ok=True)
        self._descriptor = self._open()
        self._unsaved = 0
        known = (self._saved(), self._rotated(), self._recover())
        self.cursors = {n: max(k.get(n, Cursor()) for k in known) for n in _STREAMS}

    def _open(self) -> int:
        """Open below the folder of all logs: a pod that mounts it could lay anything in our way."""
        self._root().mkdir(parents=True, exist_ok=True)
        return open_file(self._root(), self._path, append=True, alone=True)

    def _root(self) -> Path:
        """Return the folder of all logs."""
        return self._path.parents[min(_ROOT_DEPTH, len(self._path.parents) - 1)]

    def _recover(self) -> dict[int, Cursor]:
        """Cut a torn last line off and read the cursors from what is left."""
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(self._descriptor, size - torn)
        return logformat.cursors(tail)

    def _saved(self) -> dict[int, Cursor]:
        try:
            values = json.loads(self._cursor_file.read_text())
            return {int(number): Cursor(*value) for number, value in values.items()}
        except (OSError, ValueError, TypeError):
            return {}

    def _rotated(self) -> dict[int, Cursor]:
        """Read the cursors of what was moved away last: a kill may have come before the new file."""
        found = rotated([path.name for path in self._path.parent.iterdir()], self._path.name)
        if not found:
            return {}
        descriptor = open_file(self._root(), self._path.with_name(found[-1]), alone=True)
        try:
            size = os.fstat(descriptor).st_size
            return logformat.cursors(os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES)))
        finally:
            os.close(descriptor)

    def write(self, stream: int, entries: list[tuple[str, bytes]]) -> None:
        """Append entries of one stream, all or none, and move its cursor. Raises `OSError`."""
        data = b"".join(logformat.entry(time, stream, line) for time, line in entries)
        with _WRITE:
            written = os.write(self._descriptor, data)
            if written < len(data):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.cursors[stream] = self.cursors[stream].after_all([time for time, _ in entries])
        _WRITE.recorded_in_thread()
        self._unsaved += len(data)
        if self._unsaved > _SAVE_BYTES:
            self._save()

    def _save(self) -> None:
        """Keep the cursors beside the file."""
        self._cursor_file.parent.mkdir(parents=True, exist_ok=True)
        values = {number: (cursor.time, cursor.count) for number, cursor in self.cursors.items()}
        self._fresh.write_text(json.dumps(values))
        self._fresh.replace(self._cursor_file)
        self._unsaved = 0

    def reopen(self) -> None:
        """Open the path anew after the file was moved away; the cursors are kept beside."""
        self._save()
        fresh = self._open()
        os.close(self._descriptor)
        self._descriptor = fresh

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def forget(self) -> None:
        """Remove what was kept beside the file."""
        self._cursor_file.unlink(missing_ok=True)


class LogKeeper:
    """Keeps the log files of all containers written. Runs in the server's TaskGroup."""

    def __init__(self, client: DockerClient, streams: EngineStreams, directory: Path) -> None:
        self._client = client
        self._streams = streams
        self._directory = directory
        self._group: asyncio.TaskGroup | None = None
        self._files: dict[str, LogFile] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining: set[str] = set()
        self._resting: dict[str, set[asyncio.Future[None]]] = {}

    def bind(self, group: asyncio.TaskGroup) -> None:
        """Say in which group the readers run."""
        self._group = group

    def follow(self, container_id: str, path: str, *, tty: bool) -> None:
        """Write a container's output to `path` until it has ended. Following twice changes nothing."""
        if not path or container_id in self._tasks or self._group is None:
            return
        file = self._opened(container_id, Path(path))
        task = self._tasks[container_id] = self._group.create_task(self._follow(container_id, file, tty=tty))
        # Not by the task itself: one that is cancelled before it runs closes nothing.
        task.add_done_callback(lambda _: self._close(container_id, file))

    def follows(self, container_id: str) -> bool:
        """Tell whether a container's output is written, or was to its end."""
        return container_id in self._tasks

    def _opened(self, container_id: str, path: Path) -> LogFile | None:
        """Open the file at once: who learns of a start may look for it."""
        try:
            with _OPEN:
                file = LogFile(path, self._directory / f"{container_id}.json")
        except OSError as error:
            log.error(
                "Could not open a log file", container_id=container_id, path=str(path), error=str(error)
            )
            return None
        self._files[container_id] = file
        _OPEN.recorded_in_thread()
        return file

    async def _follow(self, container_id: str, file: LogFile | None, *, tty: bool) -> None:
        if file is None:
            return
        async with asyncio.TaskGroup() as group:
            for stream in (1,) if tty else (1, 2):
                group.create_task(self._pump(container_id, file, stream, tty=tty))

    def _close(self, container_id: str, file: LogFile | None) -> None:
        self._resting.pop(container_id, None)
        if file is not None:
            self._files.pop(container_id, None)
            file.close()

    async def _pump(self, container_id: str, file: LogFile, stream: int, *, tty: bool) -> None:
        while True:
            try:
                await self._read(container_id, file, stream, follow=True, tty=tty)
                if await self._ended(container_id):
                    if not await self._read(container_id, file, stream, follow=False, tty=tty):
                        return
                    continue
            except (TripodError, OSError, ValueError) as error:
                if getattr(error, "reason", "") == "ENGINE_NOT_FOUND":
                    return
                log.debug("Lost a log stream", container_id=container_id, error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)

    async def _ended(self, container_id: str) -> bool:
        inspected = await self._client.inspect(container_id)
        return inspected is None or inspected["State"]["Status"] in ("exited", "dead", "removing")

    async def _read(self, container_id: str, file: LogFile, stream: int, *, follow: bool, tty: bool) -> int:
        """Copy entries from the cursor on; returns how many were new."""
        cursor = file.cursors[stream]
        skipper, count = Skipper(cursor), 0
        chunks = self._streams.logs(
            container_id,
            _STREAMS[stream],
            since=cursor.since(),
            follow=follow,
            rest=partial(self._rest, container_id) if follow else None,
        )
        async for entries in _entries(chunks, tty=tty, whole=not follow):
            new = [entry for entry in entries if skipper.is_new(entry[0])]
            if new:
                file.write(stream, new)
                count += len(new)
        return count

    async def _rest(self, container_id: str) -> None:
        """Wait for the next beat, the same for all containers; not when somebody waits for the end."""
        if container_id in self._draining:
            return
        loop = asyncio.get_running_loop()
        awake = loop.create_future()
        now = loop.time()
        timer = loop.call_at(now + _BEAT_SECONDS - now % _BEAT_SECONDS, _wake, awake)
        resting = self._resting.setdefault(container_id, set())
        resting.add(awake)
        try:
            await awake
        finally:
            timer.cancel()
            resting.discard(awake)

    def reopen(self, container_id: str) -> bool:
        """Open a container's file anew; False when none is written."""
        file = self._files.get(container_id)
        if file is None:
            return False
        file.reopen()
        return True

    async def drain(self, container_id: str) -> None:
        """Wait until an ended container's output is in its file, for a few seconds at most."""
        task = self._tasks.get(container_id)
        if task is not None:
            self._draining.add(container_id)
            for awake in self._resting.get(container_id, ()):
                _wake(awake)
            await asyncio.wait({task}, timeout=_DRAIN_SECONDS)
            self._draining.discard(container_id)

    def drop(self, container_id: str) -> None:
        """Stop writing for a container that is gone."""
        task = self._tasks.pop(container_id, None)
        if task is not None:
            task.cancel()
        for suffix in ("json", "new"):
            (self._directory / f"{container_id}.{suffix}").unlink(missing_ok=True)

    def keep(self, container_ids: Collection[str]) -> None:
        """Drop all but these: others were removed behind our back."""
        kept = [path.name.partition(".")[0] for path in self._directory.glob("*")]
        for container_id in {*kept, *self._tasks}.difference(container_ids):
            self.drop(container_id)


def _wake(awake: asyncio.Future[None]) -> None:
    if not awake.done():
        awake.set_result(None)


async def _entries(
    chunks: AsyncIterator[bytes], *, tty: bool, whole: bool
) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Cut a stream into entries. One that is `whole` ends where the container's output does."""
    frames = LineSplitter() if tty else Demultiplexer()
    async for chunk in chunks:
        yield _cut(frames.feed(chunk))
    if whole and isinstance(frames, LineSplitter):
        yield _cut(frames.rest())


def _cut(payloads: Iterator[tuple[int, bytes]]) -> list[tuple[str, bytes]]:
    cut = [logformat.split(payload) for _, payload in payloads]
    return [entry for entry in cut if entry is not None]
