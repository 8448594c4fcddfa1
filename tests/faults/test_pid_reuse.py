"""The id of a sandbox's process comes to mean another process before the sandbox is wired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.kubelet.cri.convert import Host
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.hostports import HostPorts
from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.network.errors import NetworkError
from services.kubelet.cri.sandboxes import Sandboxes
from tests.kubelet.cri.network import netlab

pytestmark = [pytest.mark.netns, pytest.mark.asyncio, pytest.mark.fault("F48")]


class Engine:
    """Tells a sandbox's process id, each time what the test says then."""

    def __init__(self, *pids: Callable[[], int]) -> None:
        self._pids = list(pids)

    async def inspect(self, container_id: str) -> dict[str, Any]:
        """Return the present process id."""
        return {"State": {"Pid": self._pids.pop(0)()}}


@pytest.fixture
def node() -> Iterator[None]:
    """A node of the test's own."""
    with netlab.host():
        yield


@asynccontextmanager
async def network(folder: Path) -> AsyncIterator[BridgeNetwork]:
    """A pod network on a bridge of the test's own."""
    made = BridgeNetwork(
        BridgeConfig(
            state_directory=folder,
            bridge="ttpid0",
            pod_cidr="10.231.8.0/24",
            chain_prefix="TT-PID",
            veth_prefix="tp",
        )
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def sandboxes(engine: Engine, made: BridgeNetwork, folder: Path) -> Sandboxes:
    """Make the part that wires, with an engine that tells ids alone."""
    host = Host("n", "pause:1", negative_oom_scores=False)
    holdings: Any = None  # Wiring asks for none.
    client: Any = engine
    ports = HostPorts(BridgeConfig(state_directory=folder))
    return Sandboxes(client, holdings, made, ports, host, pause_binary=Path("/none"), state_directory=folder)


async def test_a_foreign_process_under_a_sandboxs_id_is_never_wired(node: None, tmp_path: Path) -> None:
    """The engine named the id, the process ended, another pod's got the id: it keeps its network as it is."""
    with netlab.sandbox() as foreign:
        async with network(tmp_path) as made:
            before, links = netlab.snapshot(), netlab.run(*netlab.inside(foreign, "ip", "-o", "addr"))
            engine = Engine(lambda: foreign, lambda: 0)
            with pytest.raises(NetworkError) as refused:
                await sandboxes(engine, made, tmp_path).attach("a" * 64, "one")

            assert refused.value.reason == "SANDBOX_NETNS_GONE"
            assert netlab.snapshot() == before
            assert netlab.run(*netlab.inside(foreign, "ip", "-o", "addr")) == links
            assert await made.list_attached() == frozenset()


async def test_the_id_is_asked_for_again_only_once_the_namespace_is_held(node: None, tmp_path: Path) -> None:
    """An end after that is no reuse: the namespace that is held is the sandbox's own."""
    with netlab.sandbox() as first, netlab.sandbox() as second:
        async with network(tmp_path) as made:
            engine = Engine(lambda: first, lambda: first, lambda: second, lambda: second)
            wiring = sandboxes(engine, made, tmp_path)
            await wiring.attach("a" * 64, "one")
            await wiring.attach("b" * 64, "two")

            addresses = made.addresses("a" * 64) + made.addresses("b" * 64)
            assert await asyncio.to_thread(netlab.pings, first, addresses[1])
            assert len(set(addresses)) == 2


async def test_a_sandbox_that_has_ended_is_not_wired(node: None, tmp_path: Path) -> None:
    """No id, no wiring."""
    async with network(tmp_path) as made:
        with pytest.raises(CriError) as refused:
            await sandboxes(Engine(lambda: 0), made, tmp_path).attach("a" * 64, "one")

        assert refused.value.reason == "SANDBOX_ENDED"
