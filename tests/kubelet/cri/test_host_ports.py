"""Host ports while the upkeep looks and pods come and go at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kubelet.cri.hostports import HostPorts
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.portmap import PublishedPort

pytestmark = pytest.mark.asyncio
PORT = PublishedPort("tcp", "192.0.2.7", 18080, 8080)
OTHER = PublishedPort("tcp", "192.0.2.7", 18081, 8080)


class Kernel(HostPorts):
    """Host ports whose rules are kept in memory."""

    def __init__(self) -> None:
        super().__init__(BridgeConfig(state_directory=Path("/nonexistent")), lambda _: ("10.0.0.7",))
        self.rules: set[str] = set()

    async def _write(self) -> None:
        self.rules = set(self._published)


async def test_a_look_from_before_a_stop_publishes_nothing_again() -> None:
    """The sandbox is told to run, and has its address, until the stop is through."""
    ports = Kernel()
    await ports.publish("victim", (PORT,))
    await ports.publish("other", (OTHER,))
    seen, listed = ports.publish_count, {"victim": (PORT,), "other": (OTHER,)}
    await ports.withdraw("victim")

    assert await ports.restore(listed, published=seen)
    assert await ports.restore(listed, published=ports.publish_count)
    assert ports.rules == {"other"}
    await ports.publish("third", (PORT,))


async def test_a_look_from_before_a_start_takes_nothing_away() -> None:
    """It is made again, and then the sandbox is among what runs."""
    ports = Kernel()
    seen = ports.publish_count
    await ports.publish("young", (PORT,))

    assert not await ports.restore({}, published=seen)
    assert ports.rules == {"young"}
    assert await ports.restore({}, published=ports.publish_count)
    assert ports.rules == set()


async def test_nothing_is_kept_of_sandboxes_that_are_gone() -> None:
    """Their ids are forgotten with the first look that does not tell them."""
    ports = Kernel()
    for number in range(3):
        await ports.publish(f"s{number}", (PORT,))
        await ports.withdraw(f"s{number}")
    await ports.restore({}, published=ports.publish_count)

    assert not ports._withdrawn
