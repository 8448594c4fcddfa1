"""CNI with Debian's plugins on a real kernel, and with a plugin that speaks 1.1.0."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.chosen import Choice, ChosenNetwork, choice
from services.kubelet.cri.network.cni.cni import CniNetwork
from services.kubelet.cri.network.cni.config import CniConfig
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.network.details import HostPort, PodDetails
from services.kubelet.cri.network.errors import NetworkError
from tests.kubelet.cri.network import netlab
from tests.lab import cni
from tests.lab.cni import FakePlugin
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.asyncio]

POD = PodDetails(name="web", namespace="shop", uid="u-1", ports=(HostPort(8080, 80),))
FAKE = {"type": "fake"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[None]:
    """A node of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root; run the tests with sudo")
    with netlab.host():
        netlab.switch("ipv4/ip_forward", "1")
        try:
            yield
        finally:
            cni.let_go(tmp_path)


@pytest.fixture
def fake(tmp_path: Path, node: None) -> FakePlugin:
    """The plugin that does what a test says."""
    return FakePlugin(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> CniConfig:
    """Folders of the test's own; the fake plugin's among them."""
    return cni.config(tmp_path, tmp_path / "fake")


@asynccontextmanager
async def running(config: CniConfig) -> AsyncIterator[CniNetwork]:
    """A started network that leaves everything in place when it stops."""
    network = CniNetwork(config)
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


def chosen(config: CniConfig, wanted: Choice = "auto") -> ChosenNetwork:
    """The bridge and CNI as one, not started."""
    bridge = BridgeConfig(
        state_directory=config.state_directory,
        bridge="ttnet0",
        pod_cidr="10.231.7.0/24",
        chain_prefix="TT-NET",
        veth_prefix="tt",
    )
    return ChosenNetwork(BridgeNetwork(bridge), CniNetwork(config), wanted)


@asynccontextmanager
async def choosing(config: CniConfig, wanted: Choice = "auto") -> AsyncIterator[ChosenNetwork]:
    """A started choice that leaves everything in place when it stops."""
    network = chosen(config, wanted)
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


async def test_a_port_of_the_host_leads_into_the_pod(node: None, config: CniConfig, tmp_path: Path) -> None:
    """The pod's ports reach `portmap`; DEL takes rules and address back."""
    cni.needs_plugins()
    cni.write_conf(config.conf_folder, *cni.bridge_plugins(tmp_path / "leases"))
    async with running(config) as network:
        with netlab.outside() as world, netlab.sandbox() as one:
            (address,) = await network.attach("one", one, hostname="one", pod=POD)
            held = cni.leased(tmp_path / "leases")
            with netlab.tcp_server(one, address, 80):
                seen = netlab.peer_seen(world, "192.0.2.1", 8080)
            await network.detach("one")

    assert seen == "192.0.2.2"
    assert held == [address]
    assert cni.leased(tmp_path / "leases") == []
    assert "--dport 8080" not in netlab.run("iptables-nft-save")
    assert address not in netlab.run("iptables-nft-save")


async def test_a_full_range_of_addresses_is_the_plugins_own_words(
    node: None, config: CniConfig, tmp_path: Path
) -> None:
    """And what the failed ADD has made is undone."""
    cni.needs_plugins()
    cni.write_conf(config.conf_folder, *cni.bridge_plugins(tmp_path / "leases", subnet="10.231.9.0/30"))
    async with running(config) as network:
        with netlab.sandbox() as one, netlab.sandbox() as two:
            await network.attach("one", one, hostname="one")
            with pytest.raises(NetworkError) as refused:
                await network.attach("two", two, hostname="two")
            left = sorted(await network.list_attached()), len(cni.kept(config))
            await network.detach("one")
            await network.attach("two", two, hostname="two")
            await network.detach("two")

    assert refused.value.reason == "CNI_PLUGIN_FAILED"
    assert "no IP addresses available in range set" in refused.value.message
    assert left == (["one"], 1)


async def test_check_tells_of_a_network_that_is_not_whole(
    node: None, config: CniConfig, tmp_path: Path
) -> None:
    """A route that somebody has deleted is seen, and seen to be back; nobody is cut off for it."""
    cni.needs_plugins()
    cni.write_conf(config.conf_folder, *cni.bridge_plugins(tmp_path / "leases"))
    async with running(config) as network:
        with netlab.sandbox() as one:
            await network.attach("one", one, hostname="one")
            await network.ensure()
            whole = network.warnings()
            route = netlab.run(*netlab.inside(one, "ip", "route", "show", "default")).split()
            netlab.run(*netlab.inside(one, "ip", "route", "del", "default"))
            await network.ensure()
            broken = network.warnings()
            netlab.run(*netlab.inside(one, "ip", "route", "add", *route))
            await network.ensure()
            await network.detach("one")

    assert whole == ()
    assert ["failed at CHECK" in text for text in broken] == [True]
    assert network.warnings() == ()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_every_version_of_the_real_plugins_works(
    node: None, config: CniConfig, tmp_path: Path, version: str
) -> None:
    """ADD, CHECK where there is one, DEL."""
    cni.needs_plugins()
    # Debian's `firewall` speaks no 0.3.1.
    plugins = cni.bridge_plugins(tmp_path / "leases")[: 2 if version == "0.3.1" else 3]
    cni.write_conf(config.conf_folder, *plugins, version=version)
    async with running(config) as network:
        with netlab.sandbox() as one:
            (address,) = await network.attach("one", one, hostname="one")
            await network.ensure()
            reached = netlab.pings(None, address)
            await network.detach("one")

    assert reached
    assert network.warnings() == ()
    assert cni.leased(tmp_path / "leases") == []


async def test_a_plugin_that_refuses_the_version_does_not_keep_the_others_from_giving_back(
    node: None, config: CniConfig, tmp_path: Path
) -> None:
    """ADD fails at the last of three, and so does its DEL: the address is released all the same."""
    cni.needs_plugins()
    cni.write_conf(config.conf_folder, *cni.bridge_plugins(tmp_path / "leases"), version="0.3.1")
    async with running(config) as network:
        with netlab.sandbox() as one:
            with pytest.raises(NetworkError, match="incompatible CNI versions"):
                await network.attach("one", one, hostname="one")
            left = await network.list_attached()

    assert left == frozenset()
    assert cni.leased(tmp_path / "leases") == []
    assert cni.kept(config) == []


async def test_del_is_told_what_add_was_told_whatever_the_file_says_by_then(
    fake: FakePlugin, config: CniConfig
) -> None:
    """After a restart, with the configuration gone: the record has it all."""
    path = cni.write_conf(config.conf_folder, {**FAKE, "mine": 1, "capabilities": {"portMappings": True}})
    with netlab.sandbox() as one:
        async with running(config) as network:
            await network.attach("one", one, hostname="one", pod=POD)
        path.unlink()
        async with running(config) as network:
            await network.detach("one")
    add, delete = fake.calls("ADD", "DEL")

    assert {**add.environment, "CNI_COMMAND": "DEL"} == delete.environment
    assert {**add.given, "prevResult": delete.given["prevResult"]} == delete.given
    assert delete.given["runtimeConfig"]["portMappings"][0]["hostPort"] == 8080
    assert delete.given["prevResult"]["ips"] == [{"address": "10.231.9.77/24"}]
    assert "K8S_POD_NAME=web" in add.environment["CNI_ARGS"]


async def test_del_runs_without_a_namespace_when_that_is_gone(fake: FakePlugin, config: CniConfig) -> None:
    """As after a reboot: no path that means another by now."""
    cni.write_conf(config.conf_folder, FAKE)
    async with running(config) as network:
        with netlab.sandbox() as one:
            await network.attach("one", one, hostname="one")
        cni.let_go(config.netns_folder.parent)
        await network.detach("one")

    assert [call.environment["CNI_NETNS"] for call in fake.calls("DEL")] == [""]


async def test_a_mount_that_was_lost_is_made_again_for_del(fake: FakePlugin, config: CniConfig) -> None:
    """As after a restart of the container that the server runs in: the same path leads there."""
    cni.write_conf(config.conf_folder, FAKE)
    async with running(config) as network:
        with netlab.sandbox() as one:
            await network.attach("one", one, hostname="one")
            cni.let_go(config.netns_folder.parent)
            fake.does("DEL", 'stat -L -c %i "$CNI_NETNS" > "$0.seen"\n')
            await network.detach("one")
            inode = Path(f"/proc/{one}/ns/net").stat().st_ino  # noqa: ASYNC240  # no file: a line of the kernel

    assert int((fake.folder / "fake.seen").read_text()) == inode
    assert cni.kept(config) == []


async def test_gc_is_told_who_is_left(fake: FakePlugin, config: CniConfig) -> None:
    """At the first look and when somebody has gone; a configuration before 1.1.0 has none."""
    cni.write_conf(config.conf_folder, FAKE, version="1.1.0")
    async with running(config) as network:
        with netlab.sandbox() as one, netlab.sandbox() as two:
            await network.attach("one", one, hostname="one")
            await network.attach("two", two, hostname="two")
            await network.collect(["one", "two"])
            await network.collect(["one", "two"])
            await network.collect(["two"])
            cni.write_conf(config.conf_folder, FAKE, version="1.0.0")
            await network.collect([])
    told = [call.given["cni.dev/valid-attachments"] for call in fake.calls("GC")]

    one_, two_ = ({"containerID": name, "ifname": "eth0"} for name in ("one", "two"))
    assert told == [[one_, two_], [two_]]
    assert {"CNI_CONTAINERID", "CNI_NETNS"}.isdisjoint(fake.calls("GC")[0].environment)


async def test_gc_never_runs_beside_an_add(fake: FakePlugin, config: CniConfig, tmp_path: Path) -> None:
    """A sandbox that GC was not told of would lose what it is being given."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    fake.does("ADD", f'read line < "{gate}"\n')
    cni.write_conf(config.conf_folder, FAKE, version="1.1.0")
    async with running(config) as network:
        with netlab.sandbox() as one:
            async with asyncio.TaskGroup() as group:
                adding = group.create_task(network.attach("one", one, hostname="one"))
                await until(lambda: bool(fake.calls("ADD")), 30)
                collecting = group.create_task(network.collect(["one"], among=[]))
                await asyncio.to_thread(gate.write_text, "go\n")
                await adding
                await collecting
            commands = [call.command for call in fake.calls()]
            (told,) = [call.given["cni.dev/valid-attachments"] for call in fake.calls("GC")]
            await network.detach("one")

    assert commands == ["ADD", "GC"]
    assert told == [{"containerID": "one", "ifname": "eth0"}]


async def test_status_says_whether_the_network_is_ready(fake: FakePlugin, config: CniConfig) -> None:
    """In the plugin's words; it is asked each time."""
    cni.write_conf(config.conf_folder, FAKE, version="1.1.0")
    async with running(config) as network:
        unasked = network.ready()
        fake.fails("STATUS", 50, "the agent is away")
        await network.ensure()
        away = network.ready()
        fake.recovers("STATUS")
        await network.ensure()
        back = network.ready()

    assert "have not told their status yet" in str(unasked)
    assert "failed at STATUS: the agent is away; the details" in str(away)
    assert back is None


async def test_a_missing_plugin_is_named_until_it_is_installed(
    node: None, config: CniConfig, tmp_path: Path
) -> None:
    """Network add-ons bring theirs after their configuration."""
    cni.write_conf(config.conf_folder, FAKE)
    async with running(config) as network:
        before = network.ready()
        with netlab.sandbox() as one, pytest.raises(NetworkError) as refused:
            await network.attach("one", one, hostname="one")
        left = await network.list_attached()
        FakePlugin(tmp_path)
        after = network.ready()

    assert "The CNI plugin fake, which" in str(before)
    assert refused.value.reason == "CNI_PLUGIN_MISSING"
    assert left == frozenset()
    assert after is None


async def test_a_pod_keeps_its_network_when_a_configuration_comes_and_goes(
    fake: FakePlugin, config: CniConfig
) -> None:
    """New pods take the new one; each is taken off the one that it is on."""
    with netlab.sandbox() as one, netlab.sandbox() as two, netlab.sandbox() as three:
        async with choosing(config) as network:
            (first,) = await network.attach("one", one, hostname="one")
            path = cni.write_conf(config.conf_folder, FAKE)
            again = await network.attach("one", one, hostname="one")
            (second,) = await network.attach("two", two, hostname="two")
        path.unlink()
        async with choosing(config) as network:
            (third,) = await network.attach("three", three, hostname="three")
            known = [network.addresses(name) for name in ("one", "two", "three")]
            leases, links = await network.ledger()
            for name in ("one", "two", "three"):
                await network.detach(name)
            left = await network.list_attached()

    assert (first, again, second, third) == ("10.231.7.2", (first,), "10.231.9.77", "10.231.7.3")
    assert known == [(first,), (second,), (third,)]
    assert set(leases) == set(links.values()) == {"one", "two", "three"}
    assert left == frozenset()
    assert [call.environment["CNI_CONTAINERID"] for call in fake.calls("DEL")] == ["two"]


async def test_a_broken_configuration_means_not_ready_and_never_the_bridge(
    fake: FakePlugin, config: CniConfig
) -> None:
    """The file is named; mended, it is taken at the next look."""
    config.conf_folder.mkdir()
    broken = config.conf_folder / "10-tt.conflist"
    broken.write_text(json.dumps({"cniVersion": "1.0.0", "name": "x", "plugins": []}))
    async with choosing(config) as network:
        reason = network.ready()
        with netlab.sandbox() as one:
            with pytest.raises(NetworkError) as refused:
                await network.attach("one", one, hostname="one")
            attached = await network.list_attached()
            cni.write_conf(config.conf_folder, FAKE)
            mended = network.ready()
            made = await network.attach("one", one, hostname="one")
            await network.detach("one")

    assert reason == f"The CNI configuration {broken} cannot be used: plugins: must be a list of at least one"
    assert refused.value.reason == "CNI_CONFIGURATION_UNUSABLE"
    assert attached == frozenset()
    assert mended is None
    assert made == ("10.231.9.77",)
    assert "ttnet0" not in netlab.run("ip", "-o", "link")


async def test_the_choice_can_be_forced(fake: FakePlugin, config: CniConfig) -> None:
    """`bridge` turns CNI off, `cni` waits for a configuration."""
    with netlab.sandbox() as one:
        async with choosing(config, "cni") as network:
            waiting = network.ready()
        cni.write_conf(config.conf_folder, FAKE)
        async with choosing(config, "bridge") as network:
            (address,) = await network.attach("one", one, hostname="one")
            await network.detach("one")

    assert waiting == f"There is no CNI configuration in {config.conf_folder}"
    assert address == "10.231.7.2"
    assert fake.calls() == []


async def test_an_unknown_choice_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(ValueError, match="pod_network: 'docker' is none of auto, cni, bridge"):
        choice("docker")


async def test_cleanup_takes_everything_off(node: None, config: CniConfig, tmp_path: Path) -> None:
    """Both networks, in a run of its own, twice."""
    cni.needs_plugins()
    with netlab.sandbox() as one, netlab.sandbox() as two:
        async with choosing(config) as network:
            await network.attach("one", one, hostname="one")
            cni.write_conf(config.conf_folder, *cni.bridge_plugins(tmp_path / "leases"))
            await network.attach("two", two, hostname="two")
        last = chosen(config)
        await last.cleanup()
        await last.cleanup()
        await last.stop()

    assert cni.leased(tmp_path / "leases") == []
    assert cni.kept(config) == []
    assert list((config.directory / "attachments").iterdir()) == []
    assert "ttnet0" not in netlab.run("ip", "-o", "link")
