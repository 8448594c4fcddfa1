"""Which routes lead to other nodes' pods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from services.common.clock import SystemClock
from services.proxy.core.audit import Audited, Finding, audit_routes
from services.proxy.core.cluster import Node
from services.proxy.core.routes import PROTOCOL, FoundRoute, RoutePlan, plan
from services.proxy.errors import KernelRefusedError
from services.proxy.loops import routes
from services.proxy.loops.routes import RouteSync
from tests.waiting import until

OWN = Node("a", ("10.1.0.0/24",), "192.0.2.1")
OTHER = Node("b", ("10.1.1.0/24",), "192.0.2.2")
OURS = FoundRoute("10.1.1.0/24", "192.0.2.2", PROTOCOL)


def planned(*others: Node, found: list[FoundRoute] | None = None, far: str = "") -> RoutePlan:
    """Plan for node a; `far` is an address behind a gateway."""
    return plan(
        [OWN, *others], "a", found or [], lambda address: f"{address} is far" if address == far else ""
    )


def test_each_other_nodes_network_is_routed_to_it() -> None:
    """This node's own is on its bridge."""
    assert planned(OTHER) == RoutePlan({"10.1.1.0/24": "192.0.2.2"}, {}, {}, {})


def test_what_is_there_already_changes_nothing() -> None:
    """A second look writes nothing."""
    assert planned(OTHER, found=[OURS]) == RoutePlan({}, {}, {}, {})


def test_a_node_with_another_address_is_followed() -> None:
    """Its route leads elsewhere, without a moment of none."""
    moved = Node("b", OTHER.pod_cidrs, "192.0.2.3")

    assert planned(moved, found=[OURS]).replace == {"10.1.1.0/24": "192.0.2.3"}


def test_a_node_that_is_gone_loses_its_route() -> None:
    """And nobody else's is touched."""
    foreign = FoundRoute("10.9.0.0/16", "192.0.2.9", 3)

    assert planned(found=[OURS, foreign]).remove == {"10.1.1.0/24": "192.0.2.2"}


def test_a_foreign_route_is_told_and_left() -> None:
    """Another program's protocol number says that it is not ours."""
    foreign = FoundRoute("10.1.1.0/24", "192.0.2.9", 3)

    made = planned(OTHER, found=[foreign])

    assert made == RoutePlan(
        {},
        {},
        {},
        {"b": "another program's route is there: 10.1.1.0/24 via 192.0.2.9 (protocol 3)"},
    )


def test_a_route_with_a_metric_is_not_ours() -> None:
    """The kernel keeps both, each look would find the other, and ours would be written for ever."""
    other = FoundRoute("10.1.1.0/24", "192.0.2.9", PROTOCOL, 100)
    fault = f"another program's route is there: 10.1.1.0/24 via 192.0.2.9 (protocol {PROTOCOL}, metric 100)"

    assert planned(OTHER, found=[other]) == RoutePlan({}, {}, {}, {"b": fault})
    assert planned(OTHER, found=[OURS, other]).remove == {"10.1.1.0/24": "192.0.2.2"}


def test_a_node_behind_a_gateway_is_told_and_its_route_goes() -> None:
    """A router in between would not know the pods."""
    made = planned(OTHER, found=[OURS], far="192.0.2.2")

    assert made.faults == {"b": "192.0.2.2 is far"}
    assert made.remove == {"10.1.1.0/24": "192.0.2.2"}


def test_networks_that_overlap_are_told() -> None:
    """Our own pods, and the first of two nodes by name, have them."""
    inside = Node("b", ("10.1.0.128/25",), "192.0.2.2")
    twice = Node("c", ("10.1.1.0/25",), "192.0.2.3")

    assert planned(inside).faults == {"b": "its pods' network 10.1.0.128/25 is in this node's"}
    assert planned(OTHER, twice).faults == {"c": "its pods' network 10.1.1.0/25 is in node b's"}


def test_networks_around_others_are_told_too() -> None:
    """Whichever of the two is the larger."""
    around = Node("c", ("10.1.0.0/16",), "192.0.2.3")

    assert plan([OTHER, around], "a", [], lambda _: "").faults == {
        "c": "its pods' network 10.1.0.0/16 is in node b's"
    }


def test_thousands_of_nodes_are_planned_at_once() -> None:
    """Each pod's link makes the routes be looked at again, and nothing else goes on meanwhile."""
    nodes = [Node(f"n{i}", (f"10.{i // 250}.{i % 250}.0/24",), "192.0.2.2") for i in range(3000)]
    found = [FoundRoute(node.pod_cidrs[0], node.address, PROTOCOL) for node in nodes[1:]]

    begin = time.process_time()
    made = plan(nodes, "n0", found, lambda _: "")

    assert made == RoutePlan({}, {}, {}, {})
    assert time.process_time() - begin < 2


def test_a_node_without_an_address_or_a_network_yet_has_no_route() -> None:
    """The first is told, the second is a node that joins."""
    made = planned(Node("b", ("10.1.1.0/24",)), Node("c", (), "192.0.2.3"))

    assert made == RoutePlan({}, {}, {}, {"b": "it has no InternalIP of IPv4"})


def test_an_audit_of_what_is_as_planned_finds_nothing() -> None:
    """Neither our own nor another program's."""
    found = [OURS, FoundRoute("10.9.0.0/16", "192.0.2.9", 3)]

    assert audit_routes(planned(OTHER, found=found), found) == []


def test_an_audit_tells_missing_misled_and_left_routes_by_network() -> None:
    """A route that leads elsewhere is there, and the one that should be is not."""
    third = Node("c", ("10.1.2.0/24",), "192.0.2.3")
    found = [FoundRoute("10.1.2.0/24", "192.0.2.8", PROTOCOL), FoundRoute("10.1.0.0/16", "", PROTOCOL)]

    assert audit_routes(planned(OTHER, third, found=found), found) == [
        Finding("route", "10.1.0.0/16", True, "It leads to a link, and no node's pods are to be reached so"),
        Finding("route", "10.1.1.0/24", False, "It should lead to 192.0.2.2"),
        Finding("route", "10.1.2.0/24", False, "The kernel leads it to 192.0.2.8, decided is 192.0.2.3"),
    ]


class MuteKernel:
    """Answers nothing."""

    async def list(self) -> Sequence[FoundRoute]:
        """Refuse."""
        raise KernelRefusedError("list of routes: No buffer space available")

    async def put(self, network: str, gateway: str, *, replace: bool) -> None:
        """Never called."""
        raise AssertionError

    async def remove(self, network: str, gateway: str) -> None:
        """Never called."""
        raise AssertionError

    async def reach(self, address: str) -> str:
        """Say that it is near."""
        return ""

    async def changes(self) -> AsyncIterator[None]:
        """Tell of nothing."""
        yield None


@pytest.mark.asyncio
async def test_routes_that_cannot_be_listed_are_told_as_such() -> None:
    """An error is no empty list: nothing is called missing."""
    made = await routes.audit(MuteKernel(), [OWN, OTHER], "a")

    assert made == Audited(
        unavailable={"route": "The kernel refused the rules: list of routes: No buffer space available"}
    )


class MemoryRoutes:
    """Routes in memory, of which one network is refused. Obeys `Routes`."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.have: dict[str, str] = {}
        self.asked = asyncio.Event()

    async def list(self) -> list[FoundRoute]:
        """Return what there is."""
        return [FoundRoute(network, gateway, PROTOCOL) for network, gateway in self.have.items()]

    async def put(self, network: str, gateway: str, *, replace: bool) -> None:
        """Add a route."""
        if network == self.refused:
            self.asked.set()
            raise KernelRefusedError("File exists")
        self.have[network] = gateway

    async def remove(self, network: str, gateway: str) -> None:
        """Remove a route."""
        self.have.pop(network, None)

    async def reach(self, address: str) -> str:
        """Every node is on our link."""
        return ""

    async def changes(self) -> AsyncIterator[None]:
        """Nobody else changes them."""
        yield None


def test_a_route_that_is_refused_keeps_no_other_away() -> None:
    """The next node's pods are reached all the same."""
    nodes = [OWN, OTHER, Node("c", ("10.1.2.0/24",), "192.0.2.3")]

    async def written() -> dict[str, str]:
        kernel = MemoryRoutes("10.1.1.0/24")
        sync = RouteSync(kernel, own_name="a", nodes=lambda: nodes, wanted=lambda: True, clock=SystemClock())
        sync.touched()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            running = group.create_task(sync.run())
            await kernel.asked.wait()
            running.cancel()
        return kernel.have

    assert asyncio.run(written()) == {"10.1.2.0/24": "192.0.2.3"}


def test_a_node_without_a_route_is_told_with_the_reason() -> None:
    """Until it has one: a person can ask for it."""
    lost = replace(OTHER, name="c", pod_cidrs=("10.1.2.0/24",), address="")
    nodes = [OWN, OTHER, lost]
    unrouted = 'kubeproxy_node_unrouted{node="c",reason="it has no InternalIP of IPv4"}'

    async def followed() -> None:
        kernel = MemoryRoutes("")
        sync = RouteSync(kernel, own_name="a", nodes=lambda: nodes, wanted=lambda: True, clock=SystemClock())
        async with asyncio.TaskGroup() as group:
            running = group.create_task(sync.run())
            sync.touched()
            await until(lambda: sync.gauges() == {"kubeproxy_node_routes": 1, unrouted: 1})
            nodes[2] = replace(lost, address="192.0.2.3")
            sync.touched()
            await until(lambda: sync.gauges() == {"kubeproxy_node_routes": 2})
            running.cancel()

    asyncio.run(followed())
