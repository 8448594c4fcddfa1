"""Which routes lead to the pods of other nodes, and what to change to have them. Pure.

Each IPv4 network of another node's pods is routed to that node's address, if this node reaches
it without a gateway in between: a router there would not know the pods. Ours are told from
others' by their protocol number; others' are never changed.

Source: Kubernetes "Cluster Networking": pods talk to all other pods without NAT. rtnetlink(7).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from services.proxy.core.cluster import Node

# Numbers from 5 on are free for user space; /etc/iproute2/rt_protos lists those in use.
PROTOCOL = 84


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """A route of the main table; `gateway` is empty for a network on a link, or one that leads nowhere.

    `metric` is its priority, 0 the first; the kernel keeps one route of a network for each.
    """

    network: str
    gateway: str
    protocol: int
    metric: int = 0

    @property
    def ours(self) -> bool:
        """Whether it is one that we write: those have no metric, whoever else uses our number."""
        return self.protocol == PROTOCOL and not self.metric


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """Routes to add, ours to lead elsewhere, ours to remove; and per node why it has none."""

    add: Mapping[str, str]
    replace: Mapping[str, str]
    remove: Mapping[str, str]
    faults: Mapping[str, str]


class _Taken:
    """Networks and whose they are. Two networks overlap when one is within the other.

    Looked up by address and length of the network itself and of all around it, however many there are.
    """

    def __init__(self) -> None:
        self._owners: dict[tuple[int, int], str] = {}
        self._around: dict[tuple[int, int], str] = {}

    def owner(self, network: IPv4Network) -> str:
        """Return whose network overlaps this one; empty for nobody's."""
        own, *around = _itself_and_around(network)
        found = next((self._owners[one] for one in (own, *around) if one in self._owners), "")
        return found or self._around.get(own, "")

    def take(self, network: IPv4Network, name: str) -> None:
        """Note whose a network is."""
        own, *around = _itself_and_around(network)
        self._owners[own] = name
        for one in around:
            self._around.setdefault(one, name)


def _itself_and_around(network: IPv4Network) -> list[tuple[int, int]]:
    address = int(network.network_address)
    return [
        (address >> (32 - length) << (32 - length), length) for length in range(network.prefixlen, -1, -1)
    ]


def plan(
    nodes: Collection[Node],
    own_name: str,
    found: Sequence[FoundRoute],
    reach: Callable[[str], str],
) -> RoutePlan:
    """Compare what should be with what is. `reach` says why an address is not on a link of ours, or ""."""
    faults: dict[str, str] = {}
    wanted: dict[str, str] = {}
    here = [IPv4Network(one) for node in nodes if node.name == own_name for one in node.pod_cidrs]
    foreign = {route.network: route for route in reversed(found) if not route.ours}
    taken = _Taken()
    for node in sorted(nodes, key=lambda one: one.name):
        if node.name == own_name or not node.pod_cidrs:
            continue
        for network in map(IPv4Network, node.pod_cidrs):
            fault = _fault(node, network, here, taken.owner(network), foreign, reach)
            if fault:
                faults[node.name] = fault
            else:
                wanted[str(network)] = node.address
                taken.take(network, node.name)
    ours = own(found)
    return RoutePlan(
        add={network: gateway for network, gateway in wanted.items() if network not in ours},
        replace={n: gateway for n, gateway in wanted.items() if ours.get(n, gateway) != gateway},
        remove={network: gateway for network, gateway in ours.items() if network not in wanted},
        faults=faults,
    )


def own(found: Sequence[FoundRoute]) -> dict[str, str]:
    """Return the gateways of our routes by network."""
    return {route.network: route.gateway for route in found if route.ours}


def _fault(
    node: Node,
    network: IPv4Network,
    here: Iterable[IPv4Network],
    rival: str,
    foreign: Mapping[str, FoundRoute],
    reach: Callable[[str], str],
) -> str:
    """Say why a network of a node's pods is not routed; empty when it can be."""
    if not node.address:
        return "it has no InternalIP of IPv4"
    if any(network.overlaps(one) for one in here):
        return f"its pods' network {network} is in this node's"
    if rival:
        return f"its pods' network {network} is in node {rival}'s"
    there = foreign.get(str(network))
    if there is not None:
        via = f" via {there.gateway}" if there.gateway else ""
        metric = f", metric {there.metric}" if there.metric else ""
        return f"another program's route is there: {network}{via} (protocol {there.protocol}{metric})"
    return reach(node.address)
