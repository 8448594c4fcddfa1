"""A network namespace of a test's own: whatever is put into it is gone with it."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace by name."""

    name: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command that run it inside; mounts stay those of the host, cgroups included."""
        return ("nsenter", f"--net=/run/netns/{self.name}")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program inside."""
        command = [*self.prefix, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=check)


@contextlib.contextmanager
def namespace(prefix: str) -> Iterator[Namespace]:
    """Make a namespace for a block, with its loopback up and a default route that leads nowhere."""
    made = Namespace(f"{prefix}{secrets.token_hex(4)}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.run("ip", "link", "set", "lo", "up")
        made.run("ip", "link", "add", "out0", "type", "bridge")
        made.run("ip", "addr", "add", "192.0.2.1/24", "dev", "out0")
        made.run("ip", "link", "set", "out0", "up")
        made.run("ip", "route", "add", "default", "dev", "out0")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.name], check=True)
