"""The files of a volume change all at once, or not at all; a cut at any point is mended by the next write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.kubelet.adapters import atomic_writer
from services.kubelet.core.payload import FileContent

OLD = {"a": FileContent(b"1", 0o644), "sub/b": FileContent(b"2", 0o600), "gone": FileContent(b"3", 0o644)}
NEW = {"a": FileContent(b"9", 0o444), "sub/c": FileContent(b"8", 0o600), "fresh/x": FileContent(b"7", 0o644)}


def seen(folder: Path) -> dict[str, bytes]:
    """Read what a container sees."""
    found: dict[str, bytes] = {}
    for root, _, files in os.walk(folder, followlinks=True):
        for name in files:
            path = (Path(root) / name).relative_to(folder)
            if not path.parts[0].startswith(".."):
                found[str(path)] = (folder / path).read_bytes()
    return found


def content(payload: dict[str, FileContent]) -> dict[str, bytes]:
    """Return the bytes of a payload."""
    return {name: file.data for name, file in payload.items()}


def test_files_are_links_to_one_folder_that_a_rename_swaps(tmp_path: Path) -> None:
    """With their modes; the old folder goes."""
    assert atomic_writer.write(tmp_path, OLD, "2026")
    assert seen(tmp_path) == content(OLD)
    assert (tmp_path / "a").readlink() == Path("..data/a")
    assert atomic_writer.write(tmp_path, NEW, "2027")

    assert seen(tmp_path) == content(NEW)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "sub/c").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir())[1:] == ["..data", "a", "fresh", "sub"]


def test_what_says_the_same_already_is_not_written(tmp_path: Path) -> None:
    """Nor touched: a restart disturbs nobody who watches the files."""
    atomic_writer.write(tmp_path, OLD, "2026")
    before = {path: path.lstat() for path in tmp_path.rglob("*")}

    assert not atomic_writer.write(tmp_path, OLD, "2027")
    assert {path: path.lstat().st_ctime_ns for path in tmp_path.rglob("*")} == {
        path: found.st_ctime_ns for path, found in before.items()
    }


def test_a_mode_alone_is_a_change(tmp_path: Path) -> None:
    """The file is written anew with it."""
    atomic_writer.write(tmp_path, OLD, "2026")

    assert atomic_writer.write(tmp_path, {**OLD, "a": FileContent(b"1", 0o400)}, "2027")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o400


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_group_may_read_the_files_it_is_given(tmp_path: Path) -> None:
    """Whatever their modes; another group is a change, the same one is none."""
    assert atomic_writer.write(tmp_path, OLD, "2026", group=4000)
    assert not atomic_writer.write(tmp_path, OLD, "2027", group=4000)
    found = (tmp_path / "sub/b").stat()
    assert atomic_writer.write(tmp_path, OLD, "2028", group=4001)

    assert (found.st_gid, found.st_mode & 0o777) == (4000, 0o640)
    assert (tmp_path / "sub/b").stat().st_gid == 4001


def test_a_volume_may_be_empty_and_lose_everything(tmp_path: Path) -> None:
    """As one of an optional ConfigMap that is not there."""
    assert atomic_writer.write(tmp_path, {}, "2026")
    assert atomic_writer.has_files(tmp_path)
    atomic_writer.write(tmp_path, OLD, "2027")
    atomic_writer.write(tmp_path, {}, "2028")

    assert seen(tmp_path) == {}


class Cut(Exception):  # noqa: N818  # stands for the end of the process
    """The process ended here."""


STEPS = ("mkdir", "chmod", "symlink_to", "rename", "unlink", "iterdir")


def cuts() -> Iterator[tuple[str, int]]:
    """Name every call that changes something, by its number."""
    for step in STEPS:
        for number in range(6):
            yield step, number


@pytest.mark.parametrize(("step", "number"), list(cuts()))
def test_a_cut_leaves_all_of_the_old_or_all_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """Whatever call was the last; the next write ends it, and leaves nothing behind."""
    atomic_writer.write(tmp_path, OLD, "2026")
    calls = 0
    real = getattr(Path, step)

    def counted(self: Path, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls == number:
            raise Cut
        calls += 1
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, step, counted)
        with suppress(Cut):
            atomic_writer.write(tmp_path, NEW, "2027")
    through = {name: (tmp_path / "..data" / name).read_bytes() for name in _names(tmp_path / "..data")}

    assert through in (content(OLD), content(NEW))
    atomic_writer.write(tmp_path, NEW, "2028")
    assert seen(tmp_path) == content(NEW)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("..")]) == 2


def _names(folder: Path) -> list[str]:
    real = folder.resolve()
    return [str(path.relative_to(real)) for path in real.rglob("*") if path.is_file()]
