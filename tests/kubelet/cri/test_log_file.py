"""A container's log file, on a real disk: cursors after kills, rotation, a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.kubelet.cri.dockerstream import PART_BYTES, STDOUT, LineSplitter
from services.kubelet.cri.logformat import Cursor
from services.kubelet.cri.logs import LogFile

STAMP = "2026-01-01T00:00:00.{:09d}Z"


def stamp(number: int) -> str:
    """Return a time that grows with its number."""
    return STAMP.format(number)


@pytest.fixture
def opened(places: tuple[Path, Path]) -> Iterator[Callable[[], LogFile]]:
    """Open the file, as a new life of the server does; all are closed at the end."""
    with ExitStack() as stack:

        def open_again() -> LogFile:
            made = LogFile(*places)
            stack.callback(made.close)
            return made

        yield open_again


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Name a log file and its cursor file."""
    return tmp_path / "logs/0.log", tmp_path / "cursors/id.json"


def test_a_kill_between_the_move_and_the_new_file_reads_nothing_twice(
    places: tuple[Path, Path], opened: Callable[[], LogFile]
) -> None:
    """The moved file has the cursor, later than the one kept at the rotation before."""
    path = places[0]
    file = opened()
    file.write(1, [(stamp(1), b"a\n")])
    path.rename(path.with_name("0.log.20260101-000001"))
    file.reopen()
    file.write(1, [(stamp(2), b"b\n"), (stamp(2), b"c\n")])
    path.rename(path.with_name("0.log.20260101-000002"))

    again = opened()

    assert again.cursors[1] == Cursor(stamp(2), 2)


def test_a_rare_stream_keeps_its_cursor_behind_a_long_tail_of_the_other(
    places: tuple[Path, Path], opened: Callable[[], LogFile]
) -> None:
    """One line of an error long ago is not read again after a restart."""
    path = places[0]
    file = opened()
    file.write(2, [(stamp(1), b"oops\n")])
    for number in range(2, 300):
        file.write(1, [(stamp(number), b"x" * 8192 + b"\n")])

    again = opened()

    assert path.stat().st_size > 2 << 20
    assert again.cursors[2] == Cursor(stamp(1), 1)
    assert again.cursors[1] == Cursor(stamp(299), 1)


def test_a_full_disk_leaves_no_torn_line_and_moves_no_cursor(
    places: tuple[Path, Path], opened: Callable[[], LogFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not written whole comes again when there is space."""
    file = opened()
    file.write(1, [(stamp(1), b"whole\n")])
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:9]))

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.write(1, [(stamp(2), b"torn\n")])
    monkeypatch.undo()
    cursor = file.cursors[1]
    file.write(1, [(stamp(2), b"torn\n")])

    assert cursor == Cursor(stamp(1), 1)
    assert places[0].read_text().splitlines() == [
        f"{stamp(1)} stdout F whole",
        f"{stamp(2)} stdout F torn",
    ]


def test_a_terminal_without_line_feeds_is_cut_into_parts() -> None:
    """In any pieces; nothing is kept for longer than one part."""
    frames = LineSplitter()
    head = stamp(1).encode() + b" "
    whole = b"".join(head + b"x" * PART_BYTES for _ in range(5)) + head + b"end\n" + head + b"rest"

    cut = [entry for at in range(0, len(whole), 1000) for entry in frames.feed(whole[at : at + 1000])]

    assert cut == [(STDOUT, head + b"x" * PART_BYTES)] * 5 + [(STDOUT, head + b"end\n")]
    assert list(frames.rest()) == [(STDOUT, head + b"rest")]
