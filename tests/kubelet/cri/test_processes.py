"""Whom the end of a command takes along: the process table as a table, and real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.kubelet.cri.processes import Process, end_command, parse_stat, tree


def table(*rows: tuple[int, int, int]) -> dict[int, Process]:
    """A process table of (pid, parent, session)."""
    return {pid: Process(pid, parent, session, zombie=False) for pid, parent, session in rows}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(10, 1, 10)], {10}, id="alone"),
        pytest.param([(10, 1, 10), (11, 10, 10), (12, 11, 10)], {10, 11, 12}, id="children-and-theirs"),
        pytest.param([(10, 1, 10), (11, 1, 10)], {10, 11}, id="left-by-its-parent-but-in-the-session"),
        pytest.param([(10, 1, 10), (11, 10, 11)], {10, 11}, id="a-session-of-its-own-but-a-child"),
        pytest.param([(10, 1, 10), (11, 1, 10), (12, 11, 12)], {10, 11, 12}, id="a-child-of-one-left-behind"),
        pytest.param([(10, 1, 10), (11, 1, 11), (1, 0, 1), (2, 1, 1)], {10}, id="the-containers-own"),
    ],
)
def test_a_command_is_its_session_and_its_descendants(
    rows: list[tuple[int, int, int]], expected: set[int]
) -> None:
    """Whatever else the container runs is not touched."""
    assert tree(table(*rows), 10) == expected


def test_those_known_before_keep_their_children_known() -> None:
    """A parent that died between two looks has told its child to the session's father."""
    assert tree(table((10, 1, 10), (12, 11, 12)), 10, frozenset({11})) == {10, 12}


@pytest.mark.parametrize("name", ["sh", "a) S 1 (b", "new\nline", ""])
def test_a_process_may_have_any_name(name: str) -> None:
    """Brackets and spaces too: the last bracket ends it."""
    assert parse_stat(f"42 ({name}) Z 7 42 43 0 -1 4194560") == Process(42, 7, 43, zombie=True)


def test_a_process_of_another_container_is_left_alone() -> None:
    """An id may have been reused."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ended = end_command(process.pid, "f" * 64)

        assert not ended
        assert process.poll() is None
        process.communicate(b"\n")
        assert process.returncode == 0


def test_a_tree_of_processes_ends_whole() -> None:
    """With those that start while we look."""
    script = (
        "import os, time\nfor _ in range(3): os.fork()\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        members = [int(process.stdout.readline()) for _ in range(8)]
        # What the cgroup's path says of a process of this test stands for the container's id.
        mark = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()[0].split(":", 1)[1]

        assert end_command(process.pid, mark)
        assert process.stdout.read() == ""

    assert process.wait() == -9
    assert len(set(members)) == 8


def test_a_process_that_has_ended_is_no_error() -> None:
    """It may end between the engine's answer and our look."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()

    assert not end_command(process.pid, "")
