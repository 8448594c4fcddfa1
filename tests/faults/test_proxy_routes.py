"""Routes to other nodes' pods while the proxy is killed, and what an audit tells of them.

The world is that of the kill matrix: a real proxy and an API server in a network namespace, whose
kernel has routes of other programs as well.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.proxy.v1 import proxy_service_pb2 as pb

from tests.matrix.process import until
from tests.matrix.proxy import BACKENDS, NODE, VIP, namespace, proxy_in
from tests.matrix.proxy_cluster import (
    B_ADDRESS,
    B_MOVED,
    B_NETWORK,
    C_ADDRESS,
    C_NETWORK,
    D_ADDRESS,
    D_NETWORK,
    FOREIGN,
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
HELD = "routes.write.before=hang"


@pytest.mark.fault("F2")
@pytest.mark.parametrize(("instant", "occurrence"), SAMPLE)
def test_a_kill_is_noticed_by_nobody(instant: str, occurrence: int, short_path: Path) -> None:
    """Rules and routes come to be as the API server tells, and others' routes stay."""
    assert asyncio.run(ClusterProxyMatrix(short_path).run(instant, occurrence))


def told(answer: pb.AuditResponse) -> list[tuple[str, str, str]]:
    """Return the findings of routes."""
    return [
        (
            finding.id,
            node_pb.AuditProblem.Name(finding.problem).removeprefix("AUDIT_PROBLEM_"),
            finding.message,
        )
        for finding in answer.findings
        if finding.category == "route"
    ]


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


async def _audited(folder: Path) -> None:
    async with stage(folder) as made:
        peopled(made)
        await made.proxy.service.start(HELD)

        async def looked() -> bool:
            answer = await made.proxy.audit()
            return not answer.unavailable and all(f.category == "route" for f in answer.findings)

        await until(looked, "the rules are there, and every node is known")
        answer = await made.proxy.audit()

        assert told(answer) == [
            (B_NETWORK, "MISSING", f"It should lead to {B_ADDRESS}"),
            (C_NETWORK, "MISSING", f"The kernel leads it to {B_MOVED}, decided is {C_ADDRESS}"),
            (LEFT, "LEAKED", f"It leads to {B_MOVED}, and no node's pods are to be reached so"),
            (ON_A_LINK, "LEAKED", "It leads to a link, and no node's pods are to be reached so"),
        ]
        assert {c.name: c.found_count for c in answer.categories}["route"] == 3
        assert made.others() == made.foreign


def test_an_audit_tells_each_route_of_ours_that_is_not_as_decided(short_path: Path) -> None:
    """Missing, led elsewhere, left over; others' are no matter."""
    asyncio.run(_audited(short_path / "w"))


async def _not_known(folder: Path) -> None:
    async with stage(folder) as made:
        peopled(made)
        made.api.refuse(403, times=1_000_000, verb="list", resource="nodes")
        await made.proxy.service.start()

        answer = await made.proxy.audit()

        assert dict(answer.unavailable) == {"route": "the API server has not told all nodes yet"}
        assert told(answer) == []
        assert "route" not in {category.name for category in answer.categories}


def test_before_all_nodes_are_known_no_route_is_called_right_or_wrong(short_path: Path) -> None:
    """It is told as not looked at."""
    asyncio.run(_not_known(short_path / "w"))


async def _left_behind(folder: Path) -> None:
    async with namespace() as netns, proxy_in(netns, folder, {}) as proxy:
        proxy.run("ip", "route", "add", LEFT, "via", B_ADDRESS, "proto", "84")
        proxy.run("ip", "route", "add", *FOREIGN[0].split())
        await proxy.service.start()

        answer = await proxy.audit()

        assert [ident for ident, problem, _ in told(answer) if problem == "LEAKED"] == [LEFT]
        assert len(told(answer)) == 1


def test_a_node_that_is_alone_tells_what_a_cluster_left(short_path: Path) -> None:
    """Nobody needs a route of ours there."""
    asyncio.run(_left_behind(short_path))
