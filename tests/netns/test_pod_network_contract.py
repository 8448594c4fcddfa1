"""What every pod network does, on a real kernel: the built-in bridge, CNI with real plugins, their choice."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.chosen import ChosenNetwork
from services.kubelet.cri.network.cni.cni import CniNetwork
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.network.errors import NetworkError
from services.kubelet.cri.ports import NetworkUpkeep
from tests.kubelet.cri.network import netlab
from tests.lab import cni

pytestmark = [pytest.mark.netns, pytest.mark.asyncio]


class Network(NetworkUpkeep, Protocol):
    """All that the CRI server asks of its network."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def list_attached(self) -> frozenset[str]: ...

    async def severed(self) -> tuple[str, ...]: ...

    async def ledger(self) -> tuple[dict[str, str], dict[str, str]]: ...


class Maker(Protocol):
    """Starts the network under test; the same state each time."""

    def __call__(self) -> AbstractAsyncContextManager[Network]: ...


@pytest.fixture
def node() -> Iterator[None]:
    """A node of the test's own, with Docker's firewall in place."""
    if os.geteuid() != 0:
        pytest.skip("needs root; run the tests with sudo")
    with netlab.host():
        netlab.dockers_firewall()
        netlab.switch("ipv4/ip_forward", "1")
        yield


@pytest.fixture(params=["bridge", "cni", "auto-bridge", "auto-cni"])
def running(request: pytest.FixtureRequest, tmp_path: Path, node: None) -> Iterator[Maker]:
    """Each kind of network."""
    kind: str = request.param
    bridge = BridgeConfig(
        state_directory=tmp_path,
        bridge="ttnet0",
        pod_cidr="10.231.7.0/24",
        chain_prefix="TT-NET",
        veth_prefix="tt",
    )
    plugged = cni.config(tmp_path)
    if kind.endswith("cni"):
        cni.needs_plugins()
        cni.write_conf(plugged.conf_folder, *cni.bridge_plugins(tmp_path / "leases"))

    def make() -> Network:
        match kind:
            case "bridge":
                return BridgeNetwork(bridge)
            case "cni":
                return CniNetwork(plugged)
        return ChosenNetwork(BridgeNetwork(bridge), CniNetwork(plugged), "auto")

    @asynccontextmanager
    async def started() -> AsyncIterator[Network]:
        network = make()
        await network.start()
        try:
            yield network
        finally:
            await network.stop()

    yield started
    cni.let_go(tmp_path)


async def _warm(network: Network) -> tuple[str, str, str, str]:
    """Take down the node once what is made for the first sandbox is there, such as a bridge."""
    with netlab.sandbox() as first:
        await network.attach("first", first, hostname="first")
        await network.detach("first")
    return netlab.snapshot()


async def test_two_pods_reach_each_other_and_the_node(running: Maker) -> None:
    """Through Docker's policy of DROP, bridge netfilter on."""
    netlab.switch("bridge/bridge-nf-call-iptables", "1")
    with netlab.sandbox() as one, netlab.sandbox() as two:
        async with running() as network:
            (first,) = await network.attach("one", one, hostname="one")
            (second,) = await network.attach("two", two, hostname="two")

            assert network.ready() is None
            assert first != second
            assert netlab.pings(one, second)
            assert netlab.pings(two, first)
            assert netlab.pings(None, second)
            assert netlab.pings(one, "127.0.0.1")


async def test_a_repeated_attach_changes_nothing(running: Maker) -> None:
    """Same address, same link, also after a restart of the server."""
    with netlab.sandbox() as one:
        async with running() as network:
            before = await network.attach("one", one, hostname="one"), netlab.snapshot()
            again = await network.attach("one", one, hostname="one"), netlab.snapshot()
        async with running() as network:
            known = network.addresses("one")
            later = await network.attach("one", one, hostname="one"), netlab.snapshot()

            assert before == again == later
            assert known == before[0]
            await network.detach("one")


async def test_a_restarted_sandbox_is_wired_in_its_new_namespace(running: Maker) -> None:
    """The network follows the process; nothing of the old end stays."""
    async with running() as network:
        clean = await _warm(network)
        with netlab.sandbox() as old, netlab.sandbox() as new:
            await network.attach("one", old, hostname="one")
            (address,) = await network.attach("one", new, hostname="one")

            assert network.addresses("one") == (address,)
            assert netlab.pings(new, "127.0.0.1")
            assert netlab.pings(None, address)
            assert await network.list_attached() == {"one"}
            await network.detach("one")
            assert netlab.snapshot() == clean


async def test_detach_gives_all_back_when_the_namespace_has_gone(running: Maker) -> None:
    """Twice is as good as once, and a stranger's detach is none."""
    async with running() as network:
        clean = await _warm(network)
        with netlab.sandbox() as one:
            await network.attach("one", one, hostname="one")
        await network.detach("one")
        await network.detach("one")
        await network.detach("never")

        assert netlab.snapshot() == clean
        assert network.addresses("one") == ()
        assert await network.list_attached() == frozenset()
        assert await network.ledger() == ({}, {})


async def test_the_hosts_own_namespace_is_never_wired(running: Maker) -> None:
    """A process in the node's network is refused and nothing changes."""
    async with running() as network:
        before = netlab.snapshot()
        with pytest.raises(NetworkError) as refused:
            await network.attach("one", os.getpid(), hostname="one")

        assert refused.value.reason == "SANDBOX_NETNS_IS_THE_HOSTS"
        assert netlab.snapshot() == before
        assert await network.list_attached() == frozenset()


async def test_a_process_that_has_ended_is_a_clear_error(running: Maker) -> None:
    """The sandbox died before it was wired."""
    with netlab.sandbox() as gone:
        pass
    async with running() as network:
        with pytest.raises(NetworkError) as refused:
            await network.attach("one", gone, hostname="one")

        assert refused.value.reason == "SANDBOX_NETNS_GONE"


@pytest.mark.fault("F48")
async def test_a_process_id_that_has_come_to_mean_another_is_refused(running: Maker) -> None:
    """Who asked says so, once the namespace is held; the stranger's namespace stays as it is."""

    async def strange() -> bool:
        return False

    with netlab.sandbox() as foreign:
        async with running() as network:
            before = netlab.snapshot()
            with pytest.raises(NetworkError) as refused:
                await network.attach("one", foreign, hostname="one", confirm=strange)

            assert refused.value.reason == "SANDBOX_NETNS_GONE"
            assert netlab.snapshot() == before
            assert await network.list_attached() == frozenset()


async def test_two_servers_cannot_share_a_state_directory(running: Maker) -> None:
    """The second is refused, and may start once the first has stopped."""
    async with running():
        with pytest.raises(NetworkError) as refused:
            async with running():
                pass
    async with running() as network:
        ready = network.ready()

    assert refused.value.reason == "NETWORK_STATE_IN_USE"
    assert ready is None


async def test_a_deleted_link_is_reported_and_comes_back_with_attach(running: Maker) -> None:
    """Only the CRI server knows the sandbox's process, so it has to ask."""
    with netlab.sandbox() as one:
        async with running() as network:
            await network.attach("one", one, hostname="one")
            netlab.run(*netlab.inside(one, "ip", "link", "del", "eth0"))
            severed = await network.severed()
            (address,) = await network.attach("one", one, hostname="")

            assert severed == ("one",)
            assert await network.severed() == ()
            assert netlab.pings(None, address)
            await network.detach("one")


async def test_collect_removes_what_no_live_sandbox_owns(running: Maker) -> None:
    """What is of the dead goes, what is of the living stays, and so does whoever came after the list."""
    with netlab.sandbox() as one, netlab.sandbox() as two, netlab.sandbox() as three:
        async with running() as network:
            await network.attach("dead", one, hostname="one")
            (second,) = await network.attach("alive", two, hostname="two")
            before: Collection[str] = await network.list_attached()
            await network.attach("late", three, hostname="three")
            removed = await network.collect(["alive"], among=before)

            assert removed == ("dead",)
            assert await network.list_attached() == {"alive", "late"}
            assert netlab.pings(None, second)
            await network.collect([])
            assert await network.list_attached() == frozenset()


async def test_many_pods_attach_at_once_with_different_addresses(running: Maker) -> None:
    """The calls overlap on the event loop."""
    with ExitStack() as stack:
        pids = [stack.enter_context(netlab.sandbox()) for _ in range(6)]
        async with running() as network:
            made = await asyncio.gather(
                *(network.attach(f"pod-{pid}", pid, hostname=f"pod-{pid}") for pid in pids)
            )
            addresses = [address for (address,) in made]

            assert len(set(addresses)) == len(pids)
            assert all(netlab.pings(pids[0], address) for address in addresses)
            await network.collect([])


async def test_the_ledger_names_each_sandbox_with_its_address_and_its_link(running: Maker) -> None:
    """An audit finds none without either."""
    with netlab.sandbox() as one:
        async with running() as network:
            (address,) = await network.attach("one", one, hostname="one")
            leases, links = await network.ledger()

            assert leases == {"one": address}
            assert list(links.values()) == ["one"]
            await network.detach("one")
