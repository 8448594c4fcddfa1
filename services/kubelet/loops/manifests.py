"""The manifest directory: each file's objects are in the store, as long as the file says so.

Watched, and read again every 20 s because a bind mount or a network file system
may tell nothing. A file that cannot be read or is refused changes nothing: what it
held before goes on, and its fault is told.

Whoever may write here is root on the node, so folder and files must be ours, and
writable by nobody else. Links are followed as long as they stay in the folder, as
those of a mounted ConfigMap do. Only regular files of at most 4 MiB are read, and
nothing is waited for. Of two files that name the same object the first that had it
keeps it; the other is refused until the object is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from services.common import failpoints
from services.common.beneath import Refused, open_file
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.core.documents import LIMIT_BYTES
from services.kubelet.loops import inotify

log = get_logger(__name__)
_TAKE = failpoints.step("manifest.take")
_DROP = failpoints.step("manifest.drop")
SUFFIXES = (".yaml", ".yml", ".json")
RESCAN_SECONDS = 20.0
# An editor changes a file several times in a row.
_BURST_SECONDS = 0.05
_REWATCH_SECONDS = 1.0


class Outcome(Protocol):
    """What was done with one object of a file."""

    @property
    def changed(self) -> bool:
        """Whether it was not as the file says."""
        ...


class OriginStore(Protocol):
    """The part of the store that knows files."""

    async def apply(self, data: bytes, *, source: str, origin: str) -> Sequence[Outcome]:
        """Make a file's objects what `data` says."""
        ...

    async def delete_origin(self, origin: str) -> None:
        """Delete a file's objects."""
        ...

    def origins(self) -> set[str]:
        """Return the files that have objects."""
        ...


class ManifestDirectory:
    """Keeps the store in step with a directory."""

    def __init__(
        self,
        directory: Path,
        store: OriginStore,
        clock: Clock,
        *,
        on_fault: Callable[[str, str], None] | None = None,
    ) -> None:
        self._directory = directory
        self._store = store
        self._clock = clock
        self._on_fault = on_fault or (lambda file, fault: None)
        self._faults: dict[str, str] = {}
        self._settled: dict[str, bytes] = {}
        self._look = asyncio.Event()

    def faults(self) -> dict[str, str]:
        """Return the files that are refused now, each with its fault."""
        return dict(self._faults)

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        await asyncio.to_thread(self._directory.mkdir, mode=0o755, parents=True, exist_ok=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            while True:
                self._look.clear()
                await self.scan()
                try:
                    async with asyncio.timeout(RESCAN_SECONDS):
                        await self._look.wait()
                except TimeoutError:
                    continue

    async def _watch(self) -> None:
        """Look when the kernel tells of a change; where it cannot, the time in `run` is all there is."""
        told = ""
        while True:
            try:
                async for _ in inotify.changes(self._directory):
                    self._look.set()
                    await asyncio.sleep(_BURST_SECONDS)
                    told = ""
            except OSError as error:
                if told != str(error):
                    log.warning("Could not watch the manifests", error=str(error))
                told = str(error)
            await asyncio.sleep(_REWATCH_SECONDS)

    async def scan(self) -> None:
        """Bring the store in step with the files once."""
        try:
            names = dict.fromkeys(await asyncio.to_thread(self._list))
        except OSError as error:
            # An unreadable directory is not an empty one.
            self._refuse(str(self._directory), error.strerror or str(error))
            return
        pending = iter(names)
        while (found := await asyncio.to_thread(self._next, pending)) is not None:
            await self._take(*found)
        for origin in self._store.origins() - names.keys():
            log.info("Removed a manifest's objects", file=origin)
            async with _DROP:
                await self._store.delete_origin(origin)
            await _DROP.recorded()
        self._faults = {name: fault for name, fault in self._faults.items() if name in names}
        self._settled = {name: digest for name, digest in self._settled.items() if name in names}

    def _list(self) -> list[str]:
        """Return the files that are manifests by name. Raises `Refused` for a folder that is not safe."""
        if what := unsafe(self._directory.stat()):
            raise Refused(self._directory, what)
        return sorted(
            str(path)
            for path in self._directory.iterdir()
            if path.suffix in SUFFIXES and not path.name.startswith(".")
        )

    def _next(self, pending: Iterator[str]) -> tuple[str, bytes | OSError] | None:
        """Read on to the next file that the store does not follow yet; None after the last."""
        for name in pending:
            try:
                content = read(self._directory, Path(name))
            except FileNotFoundError:
                # It went while we looked, and the next look will say so; or it is a link to nothing.
                if os.path.lexists(name):
                    return name, Refused(Path(name), "is a link to nothing")
            except OSError as error:
                return name, error
            else:
                if self._settled.get(name) != _digest(content):
                    return name, content
        return None

    async def _take(self, name: str, content: bytes | OSError) -> None:
        self._settled.pop(name, None)
        if isinstance(content, OSError):
            self._refuse(name, content.strerror or str(content))
            return
        try:
            async with _TAKE:
                applied = await self._store.apply(content, source=name, origin=name)
        except TripodError as error:
            lines = [f"{v.field}: {v.description}" for v in error.violations]
            self._refuse(name, "; ".join(lines) or error.message)
            return
        self._faults.pop(name, None)
        if not any(item.changed for item in applied):
            # The store says all of it; only another content can change that.
            self._settled[name] = _digest(content)
        await _TAKE.recorded()

    def _refuse(self, name: str, fault: str) -> None:
        if self._faults.get(name) != fault:
            self._faults[name] = fault
            log.error("Refused a manifest", file=name, fault=fault)
            self._on_fault(name, fault)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def read(directory: Path, path: Path) -> bytes:
    """Read one manifest. Raises `Refused` for what is not read, `OSError`."""
    root, place = directory, path
    if path.is_symlink():
        root, place = Path(os.path.realpath(directory)), Path(os.path.realpath(path))
        if not place.is_relative_to(root):
            raise Refused(path, "leads out of the manifest directory")
    descriptor = open_file(root, place)
    try:
        found = os.fstat(descriptor)
        if what := unsafe(found):
            raise Refused(path, what)
        if found.st_size > LIMIT_BYTES:
            raise Refused(path, f"has {found.st_size} bytes; at most {LIMIT_BYTES} are read")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(LIMIT_BYTES + 1)
    finally:
        os.close(descriptor)


def unsafe(found: os.stat_result) -> str:
    """Say why somebody else could write to a file or folder; nothing when nobody can."""
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, who would be root on the node: chown it to {os.geteuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others, who would be root on the node: chmod go-w"
    return ""
