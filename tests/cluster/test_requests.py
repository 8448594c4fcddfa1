"""What an idle node asks of its API server, against the intervals of docs/cluster.md."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from services.kubelet.core.kube_resources import LEASES
from tests.fakes.kube_server import KubeServer
from tests.lab.cluster_node import NODE, a_pod, fake_cluster

pytestmark = [pytest.mark.asyncio, pytest.mark.process]
MINUTE_SECONDS = 60.0


async def test_an_idle_minute_is_six_renewals_and_nothing_else(short_path: Path) -> None:
    """No status of the node or of its ten pods is told without a change, and nothing is polled."""
    async with fake_cluster(short_path) as node:
        server = node.server
        assert server is not None
        for number in range(10):
            await node.create(a_pod(f"p{number}"))
        for number in range(10):
            await node.condition(f"p{number}", "Ready")
        await node.until(lambda: node.all(LEASES), "there is a lease")
        await node.until(lambda: images_told(server), "the node has told its images")
        # What follows is the steady state, which only time can show.
        await asyncio.sleep(5.0)
        before = server.counts()

        await asyncio.sleep(MINUTE_SECONDS)

        asked = Counter(server.counts())
        asked.subtract(before)
        found = {key: count for key, count in asked.items() if count}
        assert found.pop(("patch", "leases")) in (5, 6, 7)
        # A stream may end in this very minute, and be resumed.
        assert sum(found.pop(("watch", name), 0) for name in ("pods", "nodes", "services")) <= 3
        assert found == {}


def images_told(server: KubeServer) -> bool:
    """Tell whether the Node has images; the first are told at a look of their own."""
    return bool((server.get("nodes", "", NODE) or {}).get("status", {}).get("images"))
