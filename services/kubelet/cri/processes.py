"""Ends a command in a container with all that it has started, seen from the host's process table.

The engine can start a command in a container and not end it. It tells the command's process id as the host
sees it, so a server in the host's process namespace can: the first process is stopped, then everything that
descends from it or belongs to its session is found and stopped, until a look finds nothing new, and all are
killed. A process is taken for the container's only when its cgroup names the container, looked at after a
pidfd holds it, so that a reused id can hit nobody else. What has both left the session and lost its parent is
a daemon of the container's own, and lives on.

Source: pidfd_open(2), cgroups(7), proc(5). runc starts each command in a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LOOK_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    session: int
    zombie: bool


def parse_stat(text: str) -> Process:
    """Read `/proc/PID/stat`; the name in it may hold anything, brackets too. Raises `ValueError`."""
    pid = int(text.split(" ", 1)[0])
    state, parent, _, session = text[text.rindex(")") + 2 :].split()[:4]
    return Process(pid, int(parent), int(session), state in "ZX")


def tree(table: dict[int, Process], root: int, known: frozenset[int] = frozenset()) -> frozenset[int]:
    """Return `root`, what descends from it or from a known one, and what is in its session. Pure."""
    found = {root, *known} | {process.pid for process in table.values() if process.session == root}
    while True:
        children = {process.pid for process in table.values() if process.parent in found} - found
        if not children:
            return frozenset(pid for pid in found if pid in table and not table[pid].zombie)
        found |= children


def end_command(pid: int, container_id: str, proc: Path = Path("/proc")) -> bool:
    """Kill a command's processes. Blocks for milliseconds, and may be repeated.

    Returns False when `pid` is no process of the container that is seen from here.
    """
    if not _signal(pid, signal.SIGSTOP, container_id, proc):
        return False
    known: frozenset[int] = frozenset()
    for _ in range(_LOOK_LIMIT):
        found = tree(_table(proc), pid, known)
        new = found - known
        if not new:
            break
        # Stopped first: what does not run can start nothing more.
        for member in new:
            _signal(member, signal.SIGSTOP, container_id, proc)
        known |= found
    for member in known | {pid}:
        _signal(member, signal.SIGKILL, container_id, proc)
    return True


def _signal(pid: int, number: signal.Signals, container_id: str, proc: Path) -> bool:
    try:
        with _held(pid) as handle:
            if container_id not in (proc / str(pid) / "cgroup").read_text():
                return False
            signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


@contextmanager
def _held(pid: int) -> Iterator[int]:
    handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        os.close(handle)


def _table(proc: Path) -> dict[int, Process]:
    table: dict[int, Process] = {}
    for entry in os.listdir(proc):  # noqa: PTH208  # thousands of entries, and only names are needed
        if entry.isdigit():
            # A process may end between the list and the look.
            with contextlib.suppress(OSError, ValueError):
                process = parse_stat((proc / entry / "stat").read_text(errors="replace"))
                table[process.pid] = process
    return table
