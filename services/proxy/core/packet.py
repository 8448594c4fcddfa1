"""Walk a ruleset as a packet would. Pure: for tests, and to explain.

Knows what the kernel does with our table alone, not what others do to the packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.proxy.core.ruleset import Ruleset, Target


class Fate(Enum):
    """What becomes of a new connection's first packet."""

    TRANSLATED = "translated"
    REFUSED = "refused"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fate, the endpoints it may be sent to, and those of them that see another source address."""

    fate: Fate
    targets: frozenset[Target] = frozenset()
    masqueraded: frozenset[Target] = frozenset()


def trace(rules: Ruleset, *, source: str, destination: str, protocol: str, port: int) -> Outcome:
    """Follow one packet."""
    place = (destination, protocol, port)
    count = rules.services.get(place)
    if count is not None:
        slots = ((*place, index) for index in range(count))
        targets = frozenset(rules.endpoints[slot] for slot in slots if slot in rules.endpoints)
        own = frozenset(t for t in targets if t[0] == source and source in rules.hairpins)
        return Outcome(Fate.TRANSLATED, targets, own)
    if place in rules.refused or destination in rules.addresses:
        return Outcome(Fate.REFUSED)
    return Outcome(Fate.PASSED)
