"""Routes to other nodes' pods while the proxy is killed.

The world is that of the kill matrix: a real proxy and an API server in a network namespace, whose
kernel has routes of other programs as well.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.matrix.proxy import BACKENDS, NODE, VIP
from tests.matrix.proxy_cluster import (
    B_ADDRESS,
    B_MOVED,
    B_NETWORK,
    C_ADDRESS,
    C_NETWORK,
    D_ADDRESS,
    D_NETWORK,
    OWN,
    WEB,
    Cluster,
    ClusterProxyMatrix,
    a_node,
    a_service,
    a_slice,
    stage,
)

pytestmark = pytest.mark.netns
SAMPLE = [
    ("cluster.service.receive.after", 4),
    ("cluster.slice.receive.before", 2),
    ("cluster.node.receive.recorded", 4),
    ("routes.write.before", 1),
    ("routes.write.after", 2),
    ("routes.write.before", 4),
]
LEFT, ON_A_LINK = "10.78.8.0/24", "10.78.9.0/24"


@pytest.mark.fault("F2")
@pytest.mark.parametrize(("instant", "occurrence"), SAMPLE)
def test_a_kill_is_noticed_by_nobody(instant: str, occurrence: int, short_path: Path) -> None:
    """Rules and routes come to be as the API server tells, and others' routes stay."""
    assert asyncio.run(ClusterProxyMatrix(short_path).run(instant, occurrence))


def peopled(made: Cluster) -> None:
    """Tell the API server of nodes and a service, and leave routes of a former life."""
    for name, address, network in (
        (OWN, NODE, "10.77.0.0/24"),
        ("b", B_ADDRESS, B_NETWORK),
        ("c", C_ADDRESS, C_NETWORK),
        ("d", D_ADDRESS, D_NETWORK),
    ):
        made.api.put("nodes", a_node(name, address, network))
    made.api.put("services", a_service("web", VIP, *WEB))
    made.api.put("endpointslices", a_slice("web", BACKENDS[:2], *WEB))
    ours = ("proto", "84")
    made.proxy.run("ip", "route", "add", C_NETWORK, "via", B_MOVED, *ours)
    made.proxy.run("ip", "route", "add", LEFT, "via", B_MOVED, *ours)
    made.proxy.run("ip", "route", "add", ON_A_LINK, "dev", "br0", *ours)


async def _on_a_link(folder: Path) -> None:
    async with stage(folder) as made:
        peopled(made)
        await made.proxy.service.start()
        await made.routed({B_NETWORK: B_ADDRESS, C_NETWORK: C_ADDRESS}, "the routes are as wanted")
        assert made.others() == made.foreign


def test_routes_left_over_go_also_those_on_a_link(short_path: Path) -> None:
    """One without a gateway, which we never make, keeps no other from being written."""
    asyncio.run(_on_a_link(short_path / "w"))
