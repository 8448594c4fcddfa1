"""The manifest directory: each file's objects are in the store, as long as the file says so.

Watched, and read again every 20 s because a bind mount or a network file system
may tell nothing. A file that cannot be read or is refused changes nothing: what it
held before goes on, and its fault is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.loops import inotify

log = get_logger(__name__)
_TAKE = failpoints.step("manifest.take")
_DROP = failpoints.step("manifest.drop")
SUFFIXES = (".yaml", ".yml", ".json")
RESCAN_SECONDS = 20.0
# An editor changes a file several times in a row.
_BURST_SECONDS = 0.05
_REWATCH_SECONDS = 1.0


class OriginStore(Protocol):
    """The part of the store that knows files."""

    async def apply(self, data: bytes, *, source: str, origin: str) -> object:
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
        self._look = asyncio.Event()

    def faults(self) -> dict[str, str]:
        """Return the files that are refused now, each with its fault."""
        return dict(self._faults)

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True)
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
            files = await asyncio.to_thread(self._read)
        except OSError as error:
            # An unreadable directory is not an empty one.
            self._refuse(str(self._directory), error.strerror or str(error))
            return
        for name, content in files.items():
            await self._take(name, content)
        for origin in self._store.origins() - files.keys():
            log.info("Removed a manifest's objects", file=origin)
            async with _DROP:
                await self._store.delete_origin(origin)
            await _DROP.recorded()
        for name in [name for name in self._faults if name not in files]:
            del self._faults[name]

    def _read(self) -> dict[str, bytes | OSError]:
        found: dict[str, bytes | OSError] = {}
        for path in sorted(self._directory.iterdir()):
            if path.suffix in SUFFIXES and not path.name.startswith("."):
                try:
                    found[str(path)] = path.read_bytes()
                except OSError as error:
                    found[str(path)] = error
        return found

    async def _take(self, name: str, content: bytes | OSError) -> None:
        if isinstance(content, OSError):
            self._refuse(name, content.strerror or str(content))
            return
        try:
            async with _TAKE:
                await self._store.apply(content, source=name, origin=name)
        except TripodError as error:
            lines = [f"{v.field}: {v.description}" for v in error.violations]
            self._refuse(name, "; ".join(lines) or error.message)
        else:
            self._faults.pop(name, None)
            await _TAKE.recorded()

    def _refuse(self, name: str, fault: str) -> None:
        if self._faults.get(name) != fault:
            self._faults[name] = fault
            log.error("Refused a manifest", file=name, fault=fault)
            self._on_fault(name, fault)
