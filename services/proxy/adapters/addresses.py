"""The node's IPv4 addresses, from the kernel's own table of local routes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def node_addresses(path: Path = Path("/proc/net/fib_trie")) -> Sequence[str]:
    """Return every local address but those of loopback, sorted."""
    found: set[str] = set()
    previous = ""
    for line in path.read_text().splitlines():
        text = line.strip()
        if text.startswith("/32 host LOCAL"):
            found.add(previous)
        elif text.startswith("|-- "):
            previous = text.removeprefix("|-- ")
    return sorted(address for address in found if not address.startswith("127."))
