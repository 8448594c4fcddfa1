"""Walk a ruleset as a packet would. Pure: for tests, and to explain.

Knows what the kernel does with our table alone, not what others do to the packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network

from services.proxy.core import ways
from services.proxy.core.ruleset import Masquerade, Place, Ruleset, Target, along


class Fate(Enum):
    """What becomes of a new connection's first packet."""

    TRANSLATED = "translated"
    REFUSED = "refused"
    DROPPED = "dropped"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fate, the endpoints it may be sent to, and those of them that see another source address."""

    fate: Fate
    targets: frozenset[Target] = frozenset()
    masqueraded: frozenset[Target] = frozenset()


def trace(
    rules: Ruleset, *, source: str, destination: str, protocol: str, port: int, own: bool = False
) -> Outcome:
    """Follow one packet; `own` tells that the node itself sends it."""
    place = (destination, protocol, port)
    if place in rules.guarded and not _allowed(rules, place, source):
        return Outcome(Fate.DROPPED)
    way = rules.services.get(place)
    if way is not None:
        way = ways.branch(way, own=own or _from_pod(rules, source))
        if way == ways.DROP:
            return Outcome(Fate.DROPPED)
        targets = frozenset(along(rules, place, way))
        return Outcome(Fate.TRANSLATED, targets, _masqueraded(rules, place, source, targets, own=own))
    if place in rules.refused or destination in rules.addresses:
        return Outcome(Fate.REFUSED)
    return Outcome(Fate.PASSED)


def _allowed(rules: Ruleset, place: Place, source: str) -> bool:
    return any(_within(source, one) for *at, one in rules.allowed if tuple(at) == place)


def _from_pod(rules: Ruleset, source: str) -> bool:
    return any(_within(source, one) for one in rules.pods)


def _within(address: str, network: str) -> bool:
    return IPv4Address(address) in IPv4Network(network)


def _masqueraded(
    rules: Ruleset, place: Place, source: str, targets: frozenset[Target], *, own: bool
) -> frozenset[Target]:
    who = rules.masquerades.get(place)
    outside = who is Masquerade.UNLESS_POD and not _from_pod(rules, source)
    if who is Masquerade.ALWAYS or outside or (who is Masquerade.OWN and own):
        return targets
    return frozenset(target for target in targets if target[0] == source and source in rules.hairpins)
