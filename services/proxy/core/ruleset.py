"""The kernel's rules as values, and how to change them. Pure.

Two maps hold everything: `service-ips` leads (address, protocol, port) to the chain
for its number of endpoints, and `endpoints` leads (address, protocol, port, index)
to a pod. A node port is the same with each address of the node. So the number of
chains is that of distinct counts, and a change is a few elements in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from services.proxy.core.model import Decision

Place = tuple[str, str, int]
Slot = tuple[str, str, int, int]
Target = tuple[str, int]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the kernel should do, or does.

    `services` gives each place its number of endpoints, `chains` are the numbers for
    which there is a chain, `refused` are places without any endpoint, `addresses` are
    cluster addresses of which no other port may be reached.
    """

    endpoints: Mapping[Slot, Target] = field(default_factory=dict)
    services: Mapping[Place, int] = field(default_factory=dict)
    refused: AbstractSet[Place] = frozenset()
    addresses: AbstractSet[str] = frozenset()
    hairpins: AbstractSet[str] = frozenset()
    chains: AbstractSet[int] = frozenset()


class Damage(Enum):
    """What keeps our table from being read as a ruleset; the value names a kind of repair."""

    TABLE = "table"
    CHAINS = "chains"
    ELEMENTS = "elements"


@dataclass(frozen=True, slots=True)
class Part:
    """What one service adds: where each of its places leads. A place without targets refuses."""

    address: str = ""
    places: Mapping[Place, tuple[Target, ...]] = field(default_factory=dict)


def part(decision: Decision, node_addresses: Sequence[str]) -> Part:
    """Compute what a service adds; a headless one nothing, as there is no address to lead from."""
    address = decision.service.cluster_ip
    if not address:
        return Part()
    places: dict[Place, tuple[Target, ...]] = {}
    for port in decision.ports:
        targets = tuple([(endpoint.address, endpoint.port) for endpoint in port.used()])
        protocol = port.port.protocol.value
        places[address, protocol, port.port.port] = targets
        if port.port.node_port:
            places |= {(node, protocol, port.port.node_port): targets for node in node_addresses}
    return Part(address, places)


@dataclass(frozen=True, slots=True)
class Change:
    """What leads from one ruleset to another. An element that changes is in both: deleted, then added."""

    gone: Ruleset
    new: Ruleset

    def __bool__(self) -> bool:
        """Tell whether there is anything to do."""
        return self.gone != self.new


def difference(present: Ruleset, wanted: Ruleset) -> Change:
    """Return the change from one to the other."""
    return Change(_less(present, wanted), _less(wanted, present))


def _less(these: Ruleset, those: Ruleset) -> Ruleset:
    return Ruleset(
        endpoints=_differing(these.endpoints, those.endpoints),
        services=_differing(these.services, those.services),
        refused=these.refused - those.refused,
        addresses=these.addresses - those.addresses,
        hairpins=these.hairpins - those.hairpins,
        chains=these.chains - those.chains,
    )


def _differing(these: Mapping[K, V], those: Mapping[K, V]) -> dict[K, V]:
    return {key: value for key, value in these.items() if those.get(key) != value}
