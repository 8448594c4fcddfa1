"""The built-in pod network on a real kernel; what every pod network does is in the contract."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.network.errors import NetworkError
from services.kubelet.cri.network.naming import veth_name
from tests.kubelet.cri.network import netlab

pytestmark = [pytest.mark.netns, pytest.mark.asyncio]

BRIDGE = "ttnet0"
CIDR = "10.231.7.0/24"


@pytest.fixture
def node() -> Iterator[None]:
    """A node of the test's own, with Docker's firewall in place."""
    if os.geteuid() != 0:
        pytest.skip("needs root; run the tests with sudo")
    with netlab.host():
        netlab.dockers_firewall()
        yield


@pytest.fixture
def config(tmp_path: Path) -> BridgeConfig:
    """Names of the test's own."""
    return BridgeConfig(
        state_directory=tmp_path, bridge=BRIDGE, pod_cidr=CIDR, chain_prefix="TT-NET", veth_prefix="tt"
    )


@asynccontextmanager
async def running(config: BridgeConfig) -> AsyncIterator[BridgeNetwork]:
    """A started network that leaves everything in place when it stops."""
    network = BridgeNetwork(config)
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


async def test_two_pods_reach_each_other_through_dockers_drop_policy(
    node: None, config: BridgeConfig
) -> None:
    """FORWARD is DROP and bridge netfilter on; pods ping each other, the node and are pinged by it."""
    netlab.switch("bridge/bridge-nf-call-iptables", "1")
    with netlab.sandbox() as one, netlab.sandbox() as two:
        async with running(config) as network:
            (first,) = await network.attach("one", one, hostname="one")
            (second,) = await network.attach("two", two, hostname="two")

            assert (first, second) == ("10.231.7.2", "10.231.7.3")
            assert network.ready() is None
            assert netlab.pings(one, second)
            assert netlab.pings(two, first)
            assert netlab.pings(one, "10.231.7.1")
            assert netlab.pings(None, second)


async def test_without_our_chain_the_drop_policy_stops_pods(node: None, config: BridgeConfig) -> None:
    """The check above can fail: with the jump removed no packet passes, and `ensure` repairs it."""
    netlab.switch("bridge/bridge-nf-call-iptables", "1")
    with netlab.sandbox() as one, netlab.sandbox() as two:
        async with running(config) as network:
            await network.attach("one", one, hostname="one")
            (second,) = await network.attach("two", two, hostname="two")
            netlab.run("iptables-nft", "-D", "FORWARD", "-j", "TT-NET-FORWARD")

            assert not netlab.pings(one, second)

            await network.ensure()

            assert netlab.pings(one, second)


async def test_pods_speak_tcp_and_keep_their_address_towards_each_other(
    node: None, config: BridgeConfig
) -> None:
    """Between pods nothing is masqueraded; beyond the pod CIDR the node's address is seen."""
    with netlab.outside() as world, netlab.sandbox() as one, netlab.sandbox() as two:
        async with running(config) as network:
            (first,) = await network.attach("one", one, hostname="one")
            (second,) = await network.attach("two", two, hostname="two")
            with (
                netlab.tcp_server(two, second, 8080),
                netlab.tcp_server(world, "192.0.2.2", 8080),
            ):
                assert netlab.peer_seen(one, second, 8080) == first
                assert netlab.peer_seen(None, second, 8080) == "10.231.7.1"
                assert netlab.peer_seen(one, "192.0.2.2", 8080) == "192.0.2.1"


async def test_new_connections_from_outside_to_a_pod_stay_dropped(node: None, config: BridgeConfig) -> None:
    """Only what was translated to a pod, by the service proxy, may come in."""
    with netlab.outside() as world, netlab.sandbox() as one:
        netlab.run(*netlab.inside(world, "ip", "route", "add", CIDR, "via", "192.0.2.1"))
        async with running(config) as network:
            (address,) = await network.attach("one", one, hostname="one")
            with netlab.tcp_server(one, address, 8080):
                direct = netlab.peer_seen(world, address, 8080, wait_seconds=1)
                dnat = ("-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", f"{address}:8080")
                netlab.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-i", "uplink", *dnat)
                translated = netlab.peer_seen(world, "192.0.2.1", 80)

        assert direct == ""
        assert translated == "192.0.2.2"


async def test_a_pod_reaches_itself_through_a_translated_address(node: None, config: BridgeConfig) -> None:
    """Hairpin, as with a service whose only endpoint is the caller."""
    with netlab.sandbox() as one:
        async with running(config) as network:
            (address,) = await network.attach("one", one, hostname="one")
            port = json.loads(netlab.run("ip", "-j", "-d", "link", "show", veth_name("tt", "one")))[0]
            to_pod = ("-d", "10.232.0.1", "-p", "tcp", "-j", "DNAT", "--to-destination", address)
            netlab.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", *to_pod)
            from_pod = ("-s", address, "-d", address, "-j", "MASQUERADE")
            netlab.run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", *from_pod)
            with netlab.tcp_server(one, address, 8080):
                assert port["linkinfo"]["info_slave_data"]["hairpin"] is True
                assert netlab.peer_seen(one, "10.232.0.1", 8080) == "10.231.7.1"


async def test_a_service_address_works_between_pods_of_the_bridge(node: None, config: BridgeConfig) -> None:
    """The answer passes the node's translation, because bridge netfilter was switched on."""
    netlab.switch("bridge/bridge-nf-call-iptables", "0")
    with netlab.sandbox() as one, netlab.sandbox() as two:
        async with running(config) as network:
            (first,) = await network.attach("one", one, hostname="one")
            (second,) = await network.attach("two", two, hostname="two")
            to_pod = ("-d", "10.232.0.1", "-p", "tcp", "-j", "DNAT", "--to-destination", second)
            netlab.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", *to_pod)
            with netlab.tcp_server(two, second, 8080):
                assert netlab.peer_seen(one, "10.232.0.1", 8080) == first


async def test_the_links_take_the_mtu_of_the_default_route(node: None, config: BridgeConfig) -> None:
    """A pod must not send what the node's uplink cannot carry."""
    with netlab.outside(mtu=1380), netlab.sandbox() as one:
        async with running(config) as network:
            await network.attach("one", one, hostname="one")

            assert " mtu 1380 " in netlab.run("ip", "link", "show", BRIDGE)
            assert " mtu 1380 " in netlab.run("ip", "link", "show", veth_name("tt", "one"))
            assert " mtu 1380 " in netlab.run(*netlab.inside(one, "ip", "link", "show", "eth0"))


async def test_a_repeated_attach_changes_nothing(node: None, config: BridgeConfig) -> None:
    """Same address, same link, also after a restart of the server."""
    with netlab.sandbox() as one:
        async with running(config) as network:
            before = await network.attach("one", one, hostname="one"), netlab.snapshot()
            again = await network.attach("one", one, hostname="one"), netlab.snapshot()
        async with running(config) as network:
            known = network.addresses("one")
            later = await network.attach("one", one, hostname="one"), netlab.snapshot()

    assert before == again == later
    assert known == before[0]


async def test_a_restarted_sandbox_keeps_its_address_in_a_new_namespace(
    node: None, config: BridgeConfig
) -> None:
    """The link follows the process; the old end goes with the old namespace."""
    with ExitStack() as stack:
        async with running(config) as network:
            with netlab.sandbox() as old:
                first = await network.attach("one", old, hostname="one")
            new = stack.enter_context(netlab.sandbox())
            second = await network.attach("one", new, hostname="one")

            assert first == second
            assert netlab.pings(None, second[0])


async def test_a_namespace_with_a_foreign_eth0_is_refused(node: None, config: BridgeConfig) -> None:
    """Somebody else has wired the sandbox; his link stays."""
    with netlab.sandbox() as one:
        netlab.run(*netlab.inside(one, "ip", "link", "add", "eth0", "type", "bridge"))
        async with running(config) as network:
            with pytest.raises(NetworkError) as refused:
                await network.attach("one", one, hostname="one")
            await network.detach("one")

        assert refused.value.reason == "LINK_NAME_TAKEN"
        assert "eth0" in netlab.run(*netlab.inside(one, "ip", "link"))


async def test_cleanup_leaves_the_node_as_it_was(node: None, config: BridgeConfig) -> None:
    """Rules, links, addresses and switches are as before the first start, with pods still attached."""
    netlab.switch("ipv4/ip_forward", "0")
    netlab.switch("bridge/bridge-nf-call-iptables", "0")
    with netlab.sandbox() as one, netlab.sandbox() as two:
        before = netlab.snapshot()
        async with running(config) as network:
            await network.attach("one", one, hostname="one")
        async with running(config) as network:
            await network.attach("two", two, hostname="two")
            during = netlab.snapshot()

        async with AsyncExitStack() as stack:
            last = BridgeNetwork(config)
            stack.push_async_callback(last.stop)
            await last.cleanup()
            await last.cleanup()

        assert during != before
        assert netlab.snapshot() == before


async def test_a_foreign_bridge_of_our_name_is_left_alone(node: None, config: BridgeConfig) -> None:
    """It is reported, never taken over and never removed."""
    netlab.run("ip", "link", "add", BRIDGE, "type", "bridge")
    before = netlab.run("ip", "link", "show", BRIDGE)
    async with running(config) as network:
        reason = network.ready()
        await network.cleanup()

    assert reason == f"A network link {BRIDGE} exists that Tripod did not make"
    assert netlab.run("ip", "link", "show", BRIDGE) == before


async def test_a_deleted_bridge_is_made_again_and_its_pods_rejoin(node: None, config: BridgeConfig) -> None:
    """`ensure` mends what an administrator or another program has removed."""
    with netlab.sandbox() as one, netlab.sandbox() as two:
        async with running(config) as network:
            await network.attach("one", one, hostname="one")
            (second,) = await network.attach("two", two, hostname="two")
            whole = netlab.run("iptables-nft-save")
            netlab.run("ip", "link", "del", BRIDGE)
            netlab.run("iptables-nft", "-F", "TT-NET-FORWARD")
            netlab.run("iptables-nft", "-t", "nat", "-F", "POSTROUTING")

            await network.ensure()

            assert netlab.pings(one, second)
            assert _rules(netlab.run("iptables-nft-save"), "TT-NET") == _rules(whole, "TT-NET")


async def test_lost_leases_are_rebuilt_from_the_links(node: None, config: BridgeConfig) -> None:
    """Without its file the network still knows who has which address, and hands none out twice."""
    with netlab.sandbox() as one, netlab.sandbox() as two:
        async with running(config) as network:
            first = await network.attach("one", one, hostname="one")
        (config.directory / "leases.json").write_bytes(b'{"version": 1, "lea')
        async with running(config) as network:
            second = await network.attach("two", two, hostname="two")

            assert network.addresses("one") == first
            assert first != second
            assert (config.directory / "leases.json.damaged-1").exists()


async def test_a_route_into_the_pod_cidr_is_reported(node: None, config: BridgeConfig) -> None:
    """A VPN that takes a part of the pod CIDR makes pods unreachable in a way that is hard to see."""
    with netlab.outside():
        netlab.run("ip", "route", "add", "10.231.7.128/25", "via", "192.0.2.2")
        async with running(config) as network:
            reason = network.ready()

    assert reason == f"The route 10.231.7.128/25 dev uplink takes addresses of the pod CIDR {CIDR}"


async def test_where_docker_uses_the_legacy_tables_the_rules_go_there(config: BridgeConfig) -> None:
    """The other back end stays empty: an accept there would not undo Docker's drop."""
    if os.geteuid() != 0:
        pytest.skip("needs root; run the tests with sudo")
    with netlab.host():
        netlab.dockers_firewall("legacy")
        before = netlab.run("iptables-legacy", "-S"), netlab.run("iptables-legacy", "-S", "-t", "nat")
        with netlab.sandbox() as one, netlab.sandbox() as two:
            async with running(config) as network:
                await network.attach("one", one, hostname="one")
                (second,) = await network.attach("two", two, hostname="two")
                reached = netlab.pings(one, second)
                legacy, nft = netlab.run("iptables-legacy-save"), netlab.run("iptables-nft-save")
                await network.cleanup()

        assert reached
        assert len(_rules(legacy, "TT-NET")) == 5
        assert _rules(nft, "TT-NET") == []
        assert (
            netlab.run("iptables-legacy", "-S"),
            netlab.run("iptables-legacy", "-S", "-t", "nat"),
        ) == before


async def test_without_legacy_tables_the_legacy_program_is_never_run(
    node: None, config: BridgeConfig
) -> None:
    """Running it creates its tables, which every packet would then pass."""
    async with running(config) as network:
        await network.ensure()
        await network.cleanup()

    assert netlab.run("cat", "/proc/net/ip_tables_names") == ""


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from services.kubelet.cri.network import leases, links
from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.config import BridgeConfig

directory, pid, step, when = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
owner = leases.LeaseFile if step == "save" else links
effect = getattr(owner, step)

def killing(*args, **kwargs):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    effect(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    network = BridgeNetwork(BridgeConfig(state_directory=Path(directory), bridge="ttnet0",
        pod_cidr="10.231.7.0/24", chain_prefix="TT-NET", veth_prefix="tt"))
    await network.start()
    setattr(owner, step, killing)
    await network.attach("one", pid, hostname="one")

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["save", "create_pair", "ensure_port", "configure_sandbox"])
async def test_an_attach_that_was_killed_can_be_repeated_or_collected(
    node: None, config: BridgeConfig, step: str, when: str
) -> None:
    """Killed at each step, before its effect and after it: a repeat completes, a collection undoes it."""
    with netlab.sandbox() as one:
        async with running(config):
            clean = netlab.snapshot()
        for _ in range(2):
            _attach_and_be_killed(config, one, step, when)
            async with running(config) as network:
                half_made = network.addresses("one")
                (address,) = await network.attach("one", one, hostname="one")
                reached = netlab.pings(None, address)
                await network.collect([])

            assert half_made == ()
            assert reached
        _attach_and_be_killed(config, one, step, when)
        async with running(config) as network:
            await network.collect([])

            assert netlab.snapshot() == clean
            assert await network.list_attached() == frozenset()


def _attach_and_be_killed(config: BridgeConfig, pid: int, step: str, when: str) -> None:
    arguments = [str(config.state_directory), str(pid), step, when]
    victim = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=30)
    assert victim.returncode == -signal.SIGKILL


def _rules(saved: str, prefix: str) -> list[str]:
    return [line for line in saved.splitlines() if line.startswith("-A") and prefix in line]
