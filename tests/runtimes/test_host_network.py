"""Pods on the host's network, and ports of the host that lead to pods.

The engine lies in the node's network namespace here, so that is the host to its containers.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.common.errors import RemoteError
from tests.lab.dockerd import EngineUnavailable, private_engine
from tests.lab.node import BareNode, kubelet_in, network_namespace, pod
from tests.matrix.process import Failure
from tests.runtimes.inside import said

pytestmark = [
    pytest.mark.docker,
    pytest.mark.netns,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
ADDRESS = "198.51.100.7"
SERVE = ("httpd", "-f", "-h", "/etc", "-p")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[BareNode]:
    """A node whose engine shares its network, with an address of its own."""
    try:
        async with network_namespace() as netns:
            for words in (
                ["link", "add", "uplink", "type", "bridge"],
                ["addr", "add", f"{ADDRESS}/24", "dev", "uplink"],
                ["link", "set", "uplink", "up"],
                ["route", "add", "default", "dev", "uplink"],
            ):
                await asyncio.to_thread(subprocess.run, ["ip", "-n", netns, *words], check=True)
            with private_engine(netns=netns) as engine:
                async with kubelet_in(netns, engine.host) as made:
                    await made.start()
                    await made.condition("Ready", holds=True)
                    yield made
                    await made.delete_all()
    except EngineUnavailable as error:
        pytest.skip(str(error))


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _empty(host: BareNode) -> AsyncIterator[None]:
    yield
    await host.delete_all()


async def fetched(host: BareNode, url: str) -> bool:
    """Tell whether a page comes, asked for on the node."""
    words = ["nsenter", f"--net=/run/netns/{host.netns}", "--", "busybox", "wget", "-q", "-O", "-", url]

    def fetch() -> bool:
        # No proxy of the machine's is asked.
        environment = {"PATH": os.environ["PATH"]}
        done = subprocess.run(words, capture_output=True, env=environment, timeout=3, check=False)
        return done.stdout.startswith(b"root")

    try:
        return await asyncio.to_thread(fetch)
    except subprocess.TimeoutExpired:
        return False


async def test_a_pod_on_the_hosts_network_is_the_hosts(host: BareNode) -> None:
    """Its address, its links, its name and its files; its probes are answered there."""
    probe = {"httpGet": {"port": 8099, "path": "/passwd"}, "periodSeconds": 1}
    made = {"ports": [{"containerPort": 8099}], "readinessProbe": probe}
    aliases = [{"ip": "192.0.2.7", "hostnames": ["db"]}]
    await host.apply(pod("on-host", *SERVE, "8099", hostNetwork=True, container=made, hostAliases=aliases))
    found = await host.ready("on-host")
    links = await said(host, "on-host", "busybox", "ip", "-o", "link")
    hosts = await said(host, "on-host", "cat", "/etc/hosts")

    assert list(found.pod_ips) == [ADDRESS]
    assert found.host_ip == ADDRESS
    assert "uplink" in links
    assert hosts.startswith("# Kubernetes-managed hosts file (host network).")
    assert hosts.endswith("192.0.2.7\tdb")
    assert await fetched(host, f"http://{ADDRESS}:8099/passwd")


async def test_a_pod_on_the_hosts_network_keeps_its_address_over_a_restart(host: BareNode) -> None:
    """The runtime tells none, so the kubelet does, each time."""
    await host.apply(pod("stays", hostNetwork=True))
    before = (await host.ready("stays")).containers[0].container_id
    await host.service.kill()
    await host.start()
    after = await host.ready("stays")

    assert after.containers[0].container_id == before
    assert list(after.pod_ips) == [ADDRESS]


async def test_a_port_of_the_host_leads_to_its_pod(host: BareNode) -> None:
    """On every address of the node, on loopback too, and no more once the pod is gone."""
    ports = [{"containerPort": 8080, "hostPort": 8088}]
    await host.apply(pod("led", *SERVE, "8080", container={"ports": ports}))
    await host.ready("led")
    places = [f"http://{address}:8088/passwd" for address in (ADDRESS, "10.203.0.1", "127.0.0.1")]

    async def reached() -> bool:
        return all([await fetched(host, place) for place in places])

    await host.until(reached, f"{places} answer")
    await host.delete("led")
    await host.gone("led")

    assert not await fetched(host, places[0])


async def test_a_port_of_one_address_is_on_no_other(host: BareNode) -> None:
    """As hostIP says."""
    ports = [{"containerPort": 8080, "hostPort": 8089, "hostIP": "127.0.0.1"}]
    await host.apply(pod("local", *SERVE, "8080", container={"ports": ports}))
    await host.ready("local")

    async def reached() -> bool:
        return await fetched(host, "http://127.0.0.1:8089/passwd")

    await host.until(reached, "loopback answers")
    assert not await fetched(host, f"http://{ADDRESS}:8089/passwd")


async def test_two_pods_do_not_get_one_port(host: BareNode) -> None:
    """The second is refused, with who has it; when that has gone it is taken."""
    ports = [{"containerPort": 8080, "hostPort": 8088}]
    await host.apply(pod("first", *SERVE, "8080", container={"ports": ports}))
    await host.ready("first")
    on_host = pod("second", hostNetwork=True, container={"ports": [{"containerPort": 8088}]})
    with pytest.raises(Failure) as refused:
        await host.apply(on_host)
    await host.delete("first")
    await host.gone("first")
    await host.apply(on_host)
    await host.ready("second")

    cause = refused.value.__cause__
    assert isinstance(cause, RemoteError)
    assert [(v.field, v.description) for v in cause.violations] == [
        (
            "Pod second: spec.containers[0].ports[0].hostPort",
            "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod "
            "ports; default/first has 8088/TCP",
        )
    ]
