"""The CRI server with a CNI network on a real engine, killed while a sandbox has one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import RemoteError
from services.kubelet.cri.ledger import LEDGER_INFO
from tests.docker.test_cri_server import Server
from tests.lab import cni
from tests.lab.cni import FakePlugin

SETTINGS = (
    *("socket", "state_directory", "node_name", "bridge", "pod_cidr", "chain_prefix", "veth_prefix"),
    *("cni_conf_dir", "cni_netns_dir", "cni_bin_dirs", "cni_deadline_seconds"),
)
pytestmark = [pytest.mark.docker, pytest.mark.asyncio]


class CniServer(Server):
    """A server whose pods are on a point-to-point network, of which nothing is the host's for good."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.leases = folder / "leases"
        self.fake = FakePlugin(folder)
        self.config = replace(
            self.config,
            cni_conf_dir=folder / "net.d",
            cni_netns_dir=folder / "netns",
            cni_bin_dirs=(str(self.fake.folder), str(cni.PLUGINS)),
            cni_deadline_seconds=20,
        )

    def configure(self) -> Path:
        """Write the network's configuration."""
        ranges = [[{"subnet": "10.231.11.0/24"}]]
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": ranges}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return cni.write_conf(self.config.cni_conf_dir, {"type": "ptp", "ipam": ipam}, ports)

    async def start(self) -> None:
        """Start the process with the folders of the test's own."""
        config = self.config
        file = self.folder / "settings.yaml"
        values = {name: getattr(config, name) for name in SETTINGS}
        values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        file.write_text(json.dumps(values))
        with (self.folder / "server.log").open("ab") as output:
            self._process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-m", "services.kubelet.cri", "--config", str(file)],
                stdout=output,
                stderr=output,
            )
        await self.until(lambda: self._answers())

    async def ledger(self) -> dict[str, Any]:
        """Return what the server says that it holds."""
        answer = await self.ask(self.runtime.Status, pb.StatusRequest(verbose=True))
        found: dict[str, Any] = json.loads(answer.info[LEDGER_INFO])
        return found

    async def address(self, sandbox: str) -> str:
        """Return a sandbox's address."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
        return str((await self.ask(self.runtime.PodSandboxStatus, request)).status.network.ip)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[CniServer]:
    """A running server with a configured network; everything of it is removed."""
    cni.needs_plugins()
    made = CniServer(tmp_path)
    made.configure()
    await made.start()
    try:
        yield made
    finally:
        try:
            await made.close()
        finally:
            left = cni.kept(cni.config(tmp_path))
            cni.let_go(tmp_path)
        assert cni.leased(made.leases) == []
        assert left == []


async def test_a_sandbox_has_its_address_from_the_plugins_until_it_is_stopped(server: CniServer) -> None:
    """Also over a kill of the server; the ledger has address and namespace; a stop gives them back."""
    box = await server.sandbox()
    address = await server.address(box)
    held = await server.ledger()
    pinged = await asyncio.to_thread(
        subprocess.run, ["busybox", "ping", "-c", "1", "-W", "5", address], stdout=subprocess.DEVNULL
    )
    await server.kill()
    await server.start()
    known = await server.address(box)
    listed = await server.ask(server.runtime.ListPodSandbox, pb.ListPodSandboxRequest())
    await server.ask(server.runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=box))
    left = await server.ledger()

    assert address.startswith("10.231.11.")
    assert pinged.returncode == 0
    assert held["leases"] == {box: address}
    assert list(held["links"].values()) == [box]
    assert known == address
    assert [item.state for item in listed.items] == [pb.SANDBOX_READY]
    assert (left["leases"], left["links"]) == ({}, {})
    assert cni.leased(server.leases) == []


@pytest.mark.fault("F62")
async def test_a_sandbox_that_went_while_the_server_was_away_is_taken_off_its_network(
    server: CniServer,
) -> None:
    """Nobody but the next start of the server can: the address is free again."""
    box = await server.sandbox()
    taken = cni.leased(server.leases)
    await server.kill()
    await asyncio.to_thread(
        subprocess.run, ["docker", "rm", "-f", box], check=True, stdout=subprocess.DEVNULL
    )
    await server.start()

    async def released() -> bool:
        return not (await server.ledger())["leases"]

    await server.until(released)

    assert len(taken) == 1
    assert cni.leased(server.leases) == []


@pytest.mark.fault("F62")
async def test_a_sandbox_whose_plugin_fails_is_not_left_behind(server: CniServer) -> None:
    """The call fails with the plugin's words; what DEL could not give back is tried again until it can."""
    cni.write_conf(server.config.cni_conf_dir, {"type": "fake"})
    server.fake.fails("ADD", 7, "no such range")
    server.fake.fails("DEL", 100, "no such agent")
    with pytest.raises(RemoteError) as refused:
        await server.sandbox()
    held = await server.ledger()
    server.configure()
    box = await server.sandbox()
    server.fake.recovers("DEL")

    async def released() -> bool:
        return set((await server.ledger())["leases"]) == {box}

    await server.until(released)
    await server.ask(server.runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=box))

    assert refused.value.reason == "CNI_PLUGIN_FAILED"
    assert refused.value.message.endswith("failed at ADD: no such range; the details")
    assert held["sandboxes"] == []
    assert len(held["leases"]) == len(held["links"]) == 1


async def test_a_broken_configuration_shows_in_the_status(server: CniServer) -> None:
    """NetworkReady is false and names the file; mended, it is true at once."""
    file = server.config.cni_conf_dir / "10-tt.conflist"
    file.write_text("{")
    answer = await server.ask(server.runtime.Status, pb.StatusRequest())
    (network,) = [item for item in answer.status.conditions if item.type == "NetworkReady"]
    server.configure()

    assert not network.status
    assert network.reason == "NetworkNotReady"
    assert str(file) in network.message
    assert await server._answers()
