"""A node of a cluster on a real engine: its pods have the addresses that the cluster gave it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from services.kubelet.core.kube_resources import NODES, PODS
from tests.lab.cluster_node import a_pod, fake_cluster

pytestmark = [pytest.mark.docker, pytest.mark.asyncio, pytest.mark.timeout(240)]


async def test_the_pod_network_waits_for_the_clusters_addresses(short_path: Path, image: str) -> None:
    """Before the Node has a pod CIDR no pod starts, and the node says what it waits for."""
    mark = uuid.uuid4().hex[:5]
    network = f"10.{64 + int(mark[:2], 16) % 60}.{int(mark[2:4], 16)}.0/24"
    settings = {
        "TRIPOD_CRI_ENDPOINT": "",
        "TRIPOD_NODE_NAME": f"tt-{mark}",
        "TRIPOD_BRIDGE": f"tt{mark}",
        "TRIPOD_CHAIN_PREFIX": f"TT{mark.upper()}",
        "TRIPOD_VETH_PREFIX": f"t{mark[:3]}",
        "TRIPOD_POD_NETWORK": "bridge",
    }
    async with fake_cluster(short_path, settings=settings) as node:
        try:
            name = settings["TRIPOD_NODE_NAME"]
            await node.until(lambda: node.get(NODES, name, ""), "the node is there")
            container = {"name": "app", "image": image, "command": ["sleep", "600"]}
            await node.create(
                a_pod("web", node=name, containers=[container], terminationGracePeriodSeconds=0)
            )

            async def awaited() -> bool:
                found = (await node.node()).node.conditions
                return any(c.type == "Ready" and "pod CIDR" in c.message for c in found)

            await node.until(awaited, "the node says what it waits for")

            await node.api.patch(NODES, "", name, {"spec": {"podCIDR": network}})
            pod = await node.condition("web", "Ready")

            assert ip_address(pod["status"]["podIP"]) in ip_network(network)
            assert (await node.node()).node.pod_cidr == network
            await node.api.delete(PODS, "default", "web")
            await node.gone("web")
        finally:
            await node.service.kill()
            environment = {**os.environ, **node.service.environment}
            command = [sys.executable, "-m", "services.kubelet", "--cleanup"]
            await asyncio.to_thread(subprocess.run, command, env=environment, check=False, timeout=60)
