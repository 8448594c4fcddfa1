"""The watch of a directory, on the real kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.kubelet.loops import inotify

pytestmark = pytest.mark.asyncio


async def told(watch: AsyncIterator[None]) -> None:
    """Wait for the next burst."""
    async with asyncio.timeout(10):
        await anext(watch)


def open_files() -> int:
    """Count this process's open files."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_each_way_to_change_a_directory_is_told(tmp_path: Path) -> None:
    """Written, renamed into place, linked, removed."""
    (tmp_path / "there").write_text("")
    acts: list[Callable[[], object]] = [
        lambda: (tmp_path / "a").touch(),
        lambda: (tmp_path / "there").write_text("more"),
        lambda: (tmp_path / "a").rename(tmp_path / "b"),
        lambda: (tmp_path / "c").symlink_to(tmp_path / "b"),
        lambda: (tmp_path / "b").unlink(),
    ]
    for act in acts:
        watch = inotify.changes(tmp_path)
        await told(watch)
        act()
        await told(watch)
        await watch.aclose()


@pytest.mark.fault("F61")
async def test_a_watch_ends_with_its_directory_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    """So that whoever watches can watch the next one of that name; no file stays open."""
    before = open_files()
    folder = tmp_path / "folder"
    folder.mkdir()
    watch = inotify.changes(folder)
    await told(watch)
    folder.rmdir()
    await told(watch)
    with pytest.raises(StopAsyncIteration):
        await told(watch)
    with pytest.raises(FileNotFoundError):
        await told(inotify.changes(folder))

    assert open_files() == before
