"""The manifest directory: files come, change, break and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.clock import SystemClock
from services.kubelet.core.allocate import Ranges
from services.kubelet.loops.manifests import ManifestDirectory
from services.kubelet.objects.store import ObjectStore
from tests import waiting

until = partial(waiting.until, seconds=10)

pytestmark = pytest.mark.asyncio
SERVICE = (
    "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {selector: {a: b}, ports: [{port: 80}]}\n"
)


class Watched:
    """A directory, its store and its loop."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self.folder = folder
        self.store = store
        self.loop = ManifestDirectory(folder, store, SystemClock())

    def write(self, file: str, text: str) -> None:
        """Write a file at once, as an editor does."""
        draft = self.folder / f".{file}"
        draft.write_text(text)
        draft.rename(self.folder / file)

    def names(self) -> set[str]:
        """Return the services' names."""
        return {service.name for service in self.store.services()}


@pytest_asyncio.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    """Open a store and an empty directory."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    store = ObjectStore(tmp_path / "db", Ranges(IPv4Network("10.0.0.0/24")), SystemClock(), run_id="run")
    await store.open()
    yield Watched(folder, store)
    await store.close()


async def test_files_are_followed_as_they_come_change_and_go(watched: Watched) -> None:
    """By the file system's own events."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watched.loop.run())
        watched.write("a.yaml", SERVICE.replace("NAME", "a"))
        await until(lambda: watched.names() == {"a"})
        watched.write("b.yaml", SERVICE.replace("NAME", "b"))
        await until(lambda: watched.names() == {"a", "b"})
        watched.write("a.yaml", SERVICE.replace("NAME", "c"))
        await until(lambda: watched.names() == {"b", "c"})
        (watched.folder / "b.yaml").unlink()
        await until(lambda: watched.names() == {"c"})
        running.cancel()


async def test_a_broken_file_loses_nothing_and_is_told(watched: Watched) -> None:
    """What it held before goes on, others are not touched, and its fault is named."""
    watched.write("a.yaml", SERVICE.replace("NAME", "a"))
    await watched.loop.scan()
    watched.write("a.yaml", SERVICE.replace("NAME", "a").replace("ports", "prots"))
    watched.write("b.yaml", SERVICE.replace("NAME", "b"))
    await watched.loop.scan()
    faults = watched.loop.faults()
    watched.write("a.yaml", SERVICE.replace("NAME", "a"))
    await watched.loop.scan()

    assert watched.names() == {"a", "b"}
    assert "spec.prots: unknown field, did you mean ports?" in faults[str(watched.folder / "a.yaml")]
    assert watched.loop.faults() == {}


async def test_two_files_of_one_object_are_refused(watched: Watched) -> None:
    """The fault of the second names the first."""
    for file in ("a.yaml", "b.yaml"):
        watched.write(file, SERVICE.replace("NAME", "same"))
    await watched.loop.scan()

    assert (
        f"belongs to the manifest {watched.folder}/a.yaml"
        in watched.loop.faults()[str(watched.folder / "b.yaml")]
    )


async def test_a_directory_that_cannot_be_read_removes_nothing(watched: Watched) -> None:
    """Unreadable is not empty."""
    watched.write("a.yaml", SERVICE.replace("NAME", "a"))
    await watched.loop.scan()
    (watched.folder / "a.yaml").rename(watched.folder.parent / "a.yaml")
    watched.folder.rmdir()
    await watched.loop.scan()

    assert watched.names() == {"a"}
    assert str(watched.folder) in watched.loop.faults()


async def test_a_restart_knows_which_file_an_object_came_from(watched: Watched) -> None:
    """A file that went while nobody looked takes its objects along."""
    watched.write("a.yaml", SERVICE.replace("NAME", "a"))
    await watched.loop.scan()
    (watched.folder / "a.yaml").unlink()
    await ManifestDirectory(watched.folder, watched.store, SystemClock()).scan()

    assert watched.names() == set()
