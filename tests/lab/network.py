"""A network of a test's own: a switch in a network namespace, this host and other namespaces on it.

The switch lies in a namespace, because the host's firewall would judge what crosses a bridge of the host's.
On the host there is one link and its address, gone at the end.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

# RFC 2544 keeps 198.18.0.0/15 for tests of networks.
_SUBNET = "198.18.{number}"
_numbers = count()


class LabNetwork:
    """A switch. `host` is the address that this host has on it."""

    def __init__(self, switch: str, number: int) -> None:
        self.switch = switch
        self.host = f"{_SUBNET.format(number=number)}.1"
        self._subnet = _SUBNET.format(number=number)
        self._last = 10

    async def join(self, netns: str, name: str = "eth0") -> str:
        """Link a namespace to the switch; return its address. Its default route leads to this host."""
        self._last += 1
        address = f"{self._subnet}.{self._last}"
        await ip("-n", self.switch, "link", "add", f"p{self._last}", "type", "veth", *_peer(name, netns))
        await self._plug(f"p{self._last}")
        await ip("-n", netns, "addr", "add", f"{address}/24", "dev", name)
        await ip("-n", netns, "link", "set", name, "up")
        await ip("-n", netns, "route", "add", "default", "via", self.host)
        return address

    async def unplug(self, address: str) -> None:
        """Pull the cable of a namespace."""
        await ip("-n", self.switch, "link", "set", f"p{address.rpartition('.')[2]}", "down")

    async def plug(self, address: str) -> None:
        """Put the cable in again."""
        await ip("-n", self.switch, "link", "set", f"p{address.rpartition('.')[2]}", "up")

    async def _plug(self, port: str) -> None:
        await ip("-n", self.switch, "link", "set", port, "master", "switch", "up")


@asynccontextmanager
async def lab_network(number: int = 0) -> AsyncIterator[LabNetwork]:
    """Make a network for a block; a number from 1 to 255 says which, 0 takes some. Needs root."""
    number = number or (time.monotonic_ns() // 1000 + next(_numbers)) % 250 + 1
    name = f"tl{number}-{time.monotonic_ns() // 1000 % 10**6:x}"
    made = LabNetwork(name, number)
    await ip("netns", "add", name)
    try:
        await ip("-n", name, "link", "add", "switch", "type", "bridge", "forward_delay", "0")
        await ip("-n", name, "link", "set", "switch", "up")
        link = f"tl{number}"
        await ip("link", "add", link, "type", "veth", *_peer("host", name))
        await made._plug("host")
        await ip("addr", "add", f"{made.host}/24", "dev", link)
        await ip("link", "set", link, "up")
        yield made
    finally:
        # The host's link goes with its other end.
        await ip("netns", "delete", name)


def _peer(name: str, netns: str) -> tuple[str, ...]:
    return ("peer", "name", name, "netns", netns)


async def ip(*words: str) -> None:
    """Run the `ip` program. Raises `CalledProcessError`."""
    await asyncio.to_thread(subprocess.run, ["ip", *words], check=True, capture_output=True)
