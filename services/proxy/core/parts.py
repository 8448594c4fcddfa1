"""What one service adds to the rules: where each of its places leads. Pure.

A place is a cluster address and port, which is for the inside; or a node port, an external
address or a load balancer's, which are for the outside. Policies are as the original's:

- `internalTrafficPolicy: Local` keeps the first on this node, and drops where it has no endpoint.
- `externalTrafficPolicy: Local` does so for the second, and keeps the client's address. What
  pods and the node itself send there goes to all endpoints, as if it came back from outside.
- The node's address becomes the source of what comes from outside the pods to the inside, and of
  all that comes to the outside, or the answers would take another way. A node alone, whose pods
  all answer through it, needs none of that and keeps every client's address.

Source: Kubernetes "Virtual IPs and Service Proxies"; kube-proxy's nftables proxier.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import NamedTuple

from services.proxy.core import ways
from services.proxy.core.model import Decision, Endpoint, PortDecision, Protocol, Service
from services.proxy.core.ruleset import Masquerade, Place, Stick, Target
from services.proxy.core.ways import Way


class Lead(NamedTuple):
    """Where a place leads; without a way it refuses. `sources` may use it, anyone when empty.

    `serving` are endpoints that keep the UDP flows which they have.
    """

    way: Way | None
    targets: tuple[Target, ...] = ()
    local: tuple[Target, ...] = ()
    masquerade: Masquerade | None = None
    sources: tuple[str, ...] = ()
    serving: frozenset[Target] = frozenset()


@dataclass(frozen=True, slots=True)
class Part:
    """What one service adds."""

    address: str = ""
    places: Mapping[Place, Lead] = field(default_factory=dict)
    sticks: tuple[Stick, ...] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The node as rules need to know it.

    `shared` tells that pods may be on other nodes; `pods` are then the networks whose sources
    count as pods, none when they are not known.
    """

    addresses: Sequence[str] = ()
    shared: bool = False
    pods: tuple[str, ...] = ()


def part(decision: Decision, around: Surroundings) -> Part:
    """Compute what a service adds; a headless one nothing, as there is no address to lead from."""
    service = decision.service
    if not service.cluster_ip:
        return Part()
    places: dict[Place, Lead] = {}
    sticks: list[Stick] = []
    for port in decision.ports:
        if service.affinity_seconds or around.shared:
            inside, outside, groups = _leads(service, port, around)
            sticks += groups
        else:
            found = _targets(port.used())
            inside = outside = Lead(len(found) or None, found)
        if serving := _serving(port):
            inside, outside = inside._replace(serving=serving), outside._replace(serving=serving)
        places |= _places(service, port, around, inside, outside)
    return Part(service.cluster_ip, places, tuple(sticks))


def _places(
    service: Service, port: PortDecision, around: Surroundings, inside: Lead, outside: Lead
) -> Iterator[tuple[Place, Lead]]:
    protocol, number, node_port = port.port.protocol.value, port.port.port, port.port.node_port
    if node_port:
        for node in around.addresses:
            yield (node, protocol, node_port), outside
    for address in service.external_ips:
        yield (address, protocol, number), outside
    for address in service.balancer_ips:
        sources = _sources(service, address, around)
        yield (address, protocol, number), outside._replace(sources=sources) if sources else outside
    yield (service.cluster_ip, protocol, number), inside


def _sources(service: Service, address: str, around: Surroundings) -> tuple[str, ...]:
    """Return who may use a load balancer's address.

    Where this node may, the address itself may: a packet that the node sends there has it as its
    source, if the load balancer gave the address to the node. No range is within another: the kernel
    takes none that overlap, and would refuse everybody's rules.
    """
    ranges = [IPv4Network(text) for text in service.source_ranges]
    if any(IPv4Address(node) in one for node in around.addresses for one in ranges):
        ranges.append(IPv4Network(address))
    return tuple(map(str, collapse_addresses(ranges)))


def _leads(service: Service, port: PortDecision, around: Surroundings) -> tuple[Lead, Lead, list[Stick]]:
    # On a node alone every endpoint is here: the policies change nothing.
    inner_local, outer_local = (
        around.shared and service.internal_local,
        around.shared and service.external_local,
    )
    everywhere, here = _targets(port.used()), _targets(port.used_here())
    everyone, one_group = _way(service, port, everywhere, local=False)
    nearby, local_group = _way(service, port, here, local=True)
    groups: list[Stick] = []
    if one_group and (not inner_local or _exposed(service, port)):
        groups.append(one_group)
    if local_group and (inner_local or outer_local):
        groups.append(local_group)
    if everyone is None:
        return Lead(None), Lead(None), groups
    spread, near = ((), ()) if service.affinity_seconds else (everywhere, here)
    masquerade = Masquerade.UNLESS_POD if around.pods else None
    inside = Lead(everyone, spread, (), masquerade) if not inner_local else _nearby(nearby, near, masquerade)
    outside = Lead(everyone, spread, (), Masquerade.ALWAYS if around.shared else None)
    if outer_local:
        outside = Lead(ways.split(everyone, nearby or ways.DROP), spread, near, Masquerade.OWN)
    return inside, outside, groups


def _nearby(way: Way | None, near: tuple[Target, ...], masquerade: Masquerade | None) -> Lead:
    return Lead(ways.DROP) if way is None else Lead(way, (), near, masquerade)


def _exposed(service: Service, port: PortDecision) -> bool:
    return bool(port.port.node_port or service.external_ips or service.balancer_ips)


def _way(
    service: Service, port: PortDecision, found: tuple[Target, ...], *, local: bool
) -> tuple[Way | None, Stick | None]:
    if not found:
        return None, None
    if not service.affinity_seconds:
        return (ways.local(len(found)) if local else len(found)), None
    protocol = port.port.protocol.value
    words = (service.uid, protocol, str(port.port.port), "local" if local else "all")
    group = base64.b32encode(hashlib.sha256("/".join(words).encode()).digest()).decode().lower()[:12]
    return ways.sticky(group), Stick(group, protocol, service.affinity_seconds, found)


def _serving(port: PortDecision) -> frozenset[Target]:
    if port.port.protocol is not Protocol.UDP:
        return frozenset()
    return frozenset([(e.address, e.port) for e in port.endpoints if e.serving and e.address and e.port])


def _targets(endpoints: Sequence[Endpoint]) -> tuple[Target, ...]:
    return tuple([(endpoint.address, endpoint.port) for endpoint in endpoints])
