"""The composed node, brought up as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_SECONDS = 60.0


def until(holds: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition, with a limit."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


class Node:
    """The node on this machine."""

    def up(self) -> str:
        """Bring it up."""
        return self.make("up")

    def make(self, tool: str) -> str:
        """Run one of the make targets' tools."""
        done = subprocess.run(
            [sys.executable, "-m", f"tools.{tool}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tripod(self, *words: str, data: bytes | None = None) -> str:
        """Run the command line; it must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "cli", *words], cwd=ROOT, capture_output=True, input=data, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def object(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object."""
        value: dict[str, Any] = json.loads(self.tripod("get", kind, name, "-o", "json"))
        return value

    def pid(self, service: str) -> int:
        """Return the process id of a service on the host, once it runs for ten seconds.

        The engine waits longer before each restart of a container that ran for less.
        """
        form = "{{.State.Pid}} {{.State.Running}}"
        label = f"label=com.docker.compose.service={service}"
        words = [
            "docker",
            "ps",
            "-q",
            "--filter",
            "label=com.docker.compose.project=tripod",
            "--filter",
            label,
        ]
        found = subprocess.check_output(words, text=True).strip()
        if not found:
            return 0
        pid, running = subprocess.check_output(
            ["docker", "inspect", "--format", form, found], text=True
        ).split()
        return int(pid) if running == "true" else 0

    def seconds_alive(self, pid: int) -> float:
        """Return for how long a process runs."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        started = int(fields[19]) / 100  # Clock ticks since boot; 100 a second on every Linux of today.
        return float(Path("/proc/uptime").read_text().split()[0]) - started


@pytest.fixture(scope="session")
def node() -> Node:
    """Bring the node up; it stays up."""
    made = Node()
    made.up()
    return made
