"""The kernel's rules as values, and how to change them. Pure.

Two maps hold nearly everything: `service-ips` leads (address, protocol, port) to the chain
for its number of endpoints, and `endpoints` leads (address, protocol, port, index)
to a pod. A node port is the same with each address of the node. So the number of
chains is that of distinct counts, and a change is a few elements in one transaction.
Only a service that keeps its clients at their endpoints has chains of its own.

Which connections get the node's address as their source is a third map: no packet is
marked, so there is no bit of a mark that somebody else could use, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeVar

from services.proxy.core import ways
from services.proxy.core.ways import Way

Place = tuple[str, str, int]
Slot = tuple[str, str, int, int]
Target = tuple[str, int]
Allowed = tuple[str, str, int, str]
K = TypeVar("K")
V = TypeVar("V")


class Masquerade(Enum):
    """Who gets the node's address as source at a place; the value is the chain's name."""

    ALWAYS = "masq-always"
    UNLESS_POD = "masq-unless-pod"
    OWN = "masq-own"


class Stick(NamedTuple):
    """The endpoints of one port of a service that keeps each client at one; never without any."""

    group: str
    protocol: str
    timeout_seconds: int
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the kernel should do, or does.

    `services` gives each place its way, `chains` are those that ways share, `refused` are
    places without any endpoint, `addresses` are cluster addresses of which no other port may
    be reached, `pods` are the networks whose sources count as pods, `guarded` are places that
    only the sources of `allowed` may use. `serving` are UDP endpoints that keep the flows which they have;
    the kernel has nothing of them.
    """

    endpoints: Mapping[Slot, Target] = field(default_factory=dict)
    services: Mapping[Place, Way] = field(default_factory=dict)
    refused: AbstractSet[Place] = frozenset()
    addresses: AbstractSet[str] = frozenset()
    hairpins: AbstractSet[str] = frozenset()
    chains: AbstractSet[Way] = frozenset()
    masquerades: Mapping[Place, Masquerade] = field(default_factory=dict)
    pods: AbstractSet[str] = frozenset()
    guarded: AbstractSet[Place] = frozenset()
    allowed: AbstractSet[Allowed] = frozenset()
    sticks: AbstractSet[Stick] = frozenset()
    serving: Mapping[Place, frozenset[Target]] = field(default_factory=dict, compare=False)


class Damage(Enum):
    """What keeps our table from being read as a ruleset; the value names a kind of repair."""

    TABLE = "table"
    CHAINS = "chains"
    ELEMENTS = "elements"


def targets(rules: Ruleset, place: Place) -> frozenset[Target]:
    """Return all endpoints that a place may lead to."""
    way = rules.services.get(place)
    return frozenset(_targets(rules, place, way)) if way is not None else frozenset()


def _targets(rules: Ruleset, place: Place, way: Way) -> Iterator[Target]:
    for branch in ways.branches(way):
        yield from along(rules, place, branch)


def along(rules: Ruleset, place: Place, way: Way) -> Iterator[Target]:
    """Yield the endpoints of a place along a way that is no split."""
    group = ways.group(way)
    if group:
        for stick in rules.sticks:
            if stick.group == group:
                yield from stick.targets
    for index in ways.indices(way):
        if (*place, index) in rules.endpoints:
            yield rules.endpoints[(*place, index)]


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
        masquerades=_differing(these.masquerades, those.masquerades),
        pods=these.pods - those.pods,
        guarded=these.guarded - those.guarded,
        allowed=these.allowed - those.allowed,
        sticks=these.sticks - those.sticks,
    )


def _differing(these: Mapping[K, V], those: Mapping[K, V]) -> dict[K, V]:
    return {key: value for key, value in these.items() if those.get(key) != value}
