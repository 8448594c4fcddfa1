"""The proxy beside a real kube-apiserver, behind a proxy that harms: what it sees is what it programs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.common import kubeconfig
from services.common.clock import SystemClock
from services.common.kubeapi import KubeApi
from services.common.reflector import Reflector
from services.common.watch import WatchHub
from services.proxy.adapters import cluster_objects
from services.proxy.core.cluster import ClusterPlan
from services.proxy.core.model import Decision
from services.proxy.core.ruleset import Ruleset
from services.proxy.loops import cluster_feed
from services.proxy.loops.cluster_feed import ClusterFeed
from services.proxy.loops.sync import ServiceSync
from tests import waiting
from tests.fakes.kernel import MemoryKernel
from tests.faults.test_proxy_refusals import MemoryFlows
from tests.lab.apifaults import ApiFaults, api_faults, too_many, watches
from tests.lab.kubernetes import ControlPlane, control_plane, needs_kubernetes

until = partial(waiting.until, seconds=60)

pytestmark = [
    pytest.mark.process,
    needs_kubernetes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
BASE = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
NODE = "192.0.2.1"


class Joined:
    """A proxy's plan and loop, fed by the API server, over a kernel in memory."""

    def __init__(self, kubeconfig_file: Path) -> None:
        self._clock = SystemClock()
        hub: WatchHub[Decision] = WatchHub("real")
        self.kernel, self.plan = MemoryKernel(), ClusterPlan("node-a")
        self.sync = ServiceSync(
            kernel=self.kernel,
            flows=MemoryFlows(),
            local=None,
            addresses=lambda: [NODE],
            clock=self._clock,
            hub=hub,
            plan=self.plan,
            sources=cluster_feed.SOURCES,
        )
        feed = ClusterFeed(
            self.plan, self.sync, self._clock, nodes_changed=lambda: None, programmed=lambda _: None
        )
        self.api = KubeApi(kubeconfig.load(str(kubeconfig_file)), self._clock, agent="tripod-proxy")
        made: Any = Reflector
        self.reflectors = [
            made(self.api, selection, read=read, tell=tell, clock=self._clock)
            for selection, read, tell in (
                (cluster_objects.SERVICES, cluster_objects.service_value, feed.tell_services),
                (cluster_objects.SLICES, cluster_objects.slice_value, feed.tell_slices),
                (cluster_objects.NODES, cluster_objects.node_value, feed.tell_nodes),
            )
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loops for a block."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.sync.run())]
            tasks += [group.create_task(reflector.run()) for reflector in self.reflectors]
            for source, reflector in zip(cluster_feed.SOURCES, self.reflectors, strict=True):
                await reflector.synced.wait()
                self.sync.caught_up(source)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
        await self.api.close()

    def targets(self, address: str, port: int = 80) -> set[str]:
        """Return where a place leads, by address."""
        rules = self.kernel.rules
        if not isinstance(rules, Ruleset):
            return set()
        return {to[0] for (vip, _, at, _), to in rules.endpoints.items() if (vip, at) == (address, port)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane() -> AsyncIterator[ControlPlane]:
    """Run etcd and the API server."""
    async with control_plane() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faults(plane: ControlPlane) -> AsyncIterator[ApiFaults]:
    """Put the proxy that harms before it."""
    async with api_faults(plane, plane.kubeconfig("system:kube-proxy")) as made:
        yield made


async def follows(joined: Joined, address: str, endpoint: str) -> None:
    """Wait until a service leads to one endpoint alone."""
    await until(lambda: joined.targets(address) == {endpoint})


async def a_service(plane: ControlPlane, name: str, **spec: Any) -> str:
    """Create a service without a selector; return its address."""
    port = {"name": "http", "port": 80, "targetPort": 8080}
    body = {"metadata": {"name": name}, "spec": {"ports": [port], **spec}}
    address: str = (await plane.create(BASE, body))["spec"]["clusterIP"]
    return address


async def put_slice(plane: ControlPlane, service: str, *addresses: str, create: bool = False) -> None:
    """Create the slice of a service, or give it other endpoints."""
    body = {
        "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in addresses],
    }
    if create:
        await plane.create(SLICES, body)
        return
    kind = "application/merge-patch+json"
    answer = await plane.request("PATCH", f"{SLICES}/{service}-1", body, kind=kind)
    assert answer.status == 200, answer.body


async def test_what_the_api_server_has_becomes_rules(plane: ControlPlane, faults: ApiFaults) -> None:
    """The rights of kube-proxy suffice; headless and others' services are not even told."""
    address = await a_service(plane, "web", type="NodePort", sessionAffinity="None")
    await put_slice(plane, "web", "10.1.0.1", "10.1.0.2", create=True)
    await a_service(plane, "headless", clusterIP="None")
    theirs = {"service.kubernetes.io/service-proxy-name": "other"}
    port = {"port": 80}
    await plane.create(BASE, {"metadata": {"name": "theirs", "labels": theirs}, "spec": {"ports": [port]}})
    joined = Joined(plane.kubeconfig("system:kube-proxy", url=faults.url))

    async with joined.running():
        await until(lambda: joined.targets(address) == {"10.1.0.1", "10.1.0.2"})
        names = {service.name for service in joined.plan.services.values()}
        # The API server has one of its own.
        assert {"web", "kubernetes"} <= names
        assert "theirs" not in names
        node_port = (await plane.get(f"{BASE}/web"))["spec"]["ports"][0]["nodePort"]
        assert joined.targets(NODE, node_port) == {"10.1.0.1", "10.1.0.2"}


async def test_streams_that_are_cut_lose_no_endpoint(plane: ControlPlane, faults: ApiFaults) -> None:
    """Every second, while endpoints change; a refused list is asked again."""
    address = await a_service(plane, "cut")
    await put_slice(plane, "cut", "10.1.1.1", create=True)
    joined = Joined(plane.kubeconfig("system:kube-proxy", url=faults.url))

    async with joined.running():
        await follows(joined, address, "10.1.1.1")
        faults.cut_watches_seconds = 1.0
        faults.refuse(too_many(1), times=3)
        number, begun = 1, faults.count(watches)
        while faults.count(watches) < begun + 9:
            number += 1
            endpoint = f"10.1.1.{number}"
            await put_slice(plane, "cut", endpoint)
            await follows(joined, address, endpoint)
        faults.cut_watches_seconds = 0.0


async def test_while_it_is_away_the_rules_stay_and_then_they_follow(
    plane: ControlPlane, faults: ApiFaults
) -> None:
    """Killed in the middle, with its history compacted: no rule goes, none is lost, nothing is rewritten."""
    address = await a_service(plane, "away")
    await put_slice(plane, "away", "10.1.2.1", create=True)
    joined = Joined(plane.kubeconfig("system:kube-proxy"))

    async with joined.running():
        await until(lambda: joined.targets(address) == {"10.1.2.1"})
        writes = joined.kernel.writes
        await plane.end("kube-apiserver")
        await until(lambda: any(reflector.fault() for reflector in joined.reflectors))
        assert joined.targets(address) == {"10.1.2.1"}
        assert joined.kernel.writes == writes
        await plane.start("kube-apiserver")
        await put_slice(plane, "away", "10.1.2.2")
        await plane.compact()
        await put_slice(plane, "away", "10.1.2.3")
        await until(lambda: joined.targets(address) == {"10.1.2.3"})
        await until(lambda: not any(reflector.fault() for reflector in joined.reflectors))
