"""Kill the kubelet at each instant of its dealings with the API server; then all must be as without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.kubelet.core.kube_resources import NODES, PODS
from tests.lab.cluster_node import NODE, ClusterNode, a_pod, fake_cluster

pytestmark = [pytest.mark.asyncio, pytest.mark.process]
INSTANTS = [
    f"{step}.{when}"
    for step in ("cluster.node.register", "cluster.pod.accept", "cluster.pod.report", "cluster.pod.delete")
    for when in ("before", "after", "recorded")
]


@pytest.mark.parametrize("instant", INSTANTS)
async def test_a_life_cut_short_is_taken_up_by_the_next(short_path: Path, instant: str) -> None:
    """The pod starts once, its status is told, it ends, and the API forgets it."""
    async with fake_cluster(short_path, start=False) as node, reviving(node):
        await node.service.start(f"{instant}=1*kill")
        await node.until(lambda: node.get(NODES, NODE, ""), "the node is there")
        uid = (await node.create(a_pod("web")))["metadata"]["uid"]
        await node.condition("web", "Ready")
        await node.api.delete(PODS, "default", "web")
        await node.gone("web")
        await node.until(lambda: not node.fake.sandboxes, "nothing of it is left")

        await node.until(lambda: node.service.killed_itself, "it was killed and started again")
        assert [kind for kind, _, _ in node.history(uid) if kind == "sandbox"] == ["sandbox"]
        assert not node.fake.violations


@asynccontextmanager
async def reviving(node: ClusterNode) -> AsyncIterator[None]:
    """Start the kubelet again whenever it has died, as whoever composed it does."""

    async def revive() -> None:
        while True:
            if node.service.lives:
                await node.service.revive()
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(revive())
        try:
            yield
        finally:
            task.cancel()
