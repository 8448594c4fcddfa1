"""All services' rules as one ruleset, kept current service by service. Pure.

A change of one service costs what that service has, however many others there are;
what comes out is the same as from all services anew. Where two services claim one
place, which the kubelet refuses, the smaller UID has it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from services.proxy.core.model import Decision
from services.proxy.core.ruleset import Part, Place, Ruleset, Slot, Target, part

K = TypeVar("K", bound=Hashable)
_NOTHING = Part()


class _Uses(Generic[K]):
    """Counts the uses of values; `present` are those that somebody uses."""

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}
        self._touched: dict[K, bool] = {}
        self.present: AbstractSet[K] = self._counts.keys()

    def move(self, gone: Iterable[K], new: Iterable[K]) -> None:
        """Count some uses less and some more."""
        counts = self._counts
        for value in new:
            if value not in counts:
                self._touched.setdefault(value, False)
                counts[value] = 1
            else:
                counts[value] += 1
        for value in gone:
            counts[value] -= 1
            if not counts[value]:
                self._touched.setdefault(value, True)
                del counts[value]

    def take(self) -> tuple[frozenset[K], frozenset[K]]:
        """Return which values went and which came since the last time."""
        touched, self._touched = self._touched, {}
        gone = frozenset(value for value, was in touched.items() if was and value not in self.present)
        new = frozenset(value for value, was in touched.items() if not was and value in self.present)
        return gone, new

    def settle(self) -> None:
        """Take what changed as known."""
        self._touched = {}


class Composer:
    """Holds each service's part and the whole. Nobody else changes `rules`."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._claims: dict[Place, tuple[str, ...]] = {}
        self._places: dict[Place, tuple[Target, ...]] = {}
        self._endpoints: dict[Slot, Target] = {}
        self._services: dict[Place, int] = {}
        self._refused: set[Place] = set()
        self._addresses = _Uses[str]()
        self._hairpins = _Uses[str]()
        self._chains = _Uses[int]()
        self._touched: dict[Place, tuple[Target, ...] | None] = {}
        self.rules = Ruleset(
            endpoints=self._endpoints,
            services=self._services,
            refused=self._refused,
            addresses=self._addresses.present,
            hairpins=self._hairpins.present,
            chains=self._chains.present,
        )

    def put(self, uid: str, wanted: Part | None) -> None:
        """Set what a service adds; None when it is gone."""
        before, after = self._parts.get(uid, _NOTHING), wanted or _NOTHING
        if before == after:
            return
        if wanted is None:
            del self._parts[uid]
        else:
            self._parts[uid] = after
        self._addresses.move(
            [before.address] if before.address else (), [after.address] if after.address else ()
        )
        for place in before.places.keys() | after.places.keys():
            self._claim(place, uid, claimed=place in after.places)

    def _claim(self, place: Place, uid: str, *, claimed: bool) -> None:
        others = [other for other in self._claims.get(place, ()) if other != uid]
        claims = tuple(sorted([*others, uid]) if claimed else others)
        if claims:
            self._claims[place] = claims
            self._lead(place, self._parts[claims[0]].places[place])
        else:
            self._claims.pop(place, None)
            self._lead(place, None)

    def _lead(self, place: Place, after: tuple[Target, ...] | None) -> None:
        """Let a place lead to other targets; None lets it lead nowhere, and not refuse either."""
        before = self._places.get(place)
        if before == after:
            return
        self._touched.setdefault(place, before)
        old, new = before or (), after or ()
        for index in range(len(new), len(old)):
            del self._endpoints[(*place, index)]
        for index, target in enumerate(new):
            self._endpoints[(*place, index)] = target
        self._hairpins.move([target[0] for target in old], [target[0] for target in new])
        self._chains.move([len(old)] if old else (), [len(new)] if new else ())
        if new:
            self._services[place] = len(new)
        else:
            self._services.pop(place, None)
        (self._refused.add if after == () else self._refused.discard)(place)
        if after is None:
            del self._places[place]
        else:
            self._places[place] = after

    def settle(self) -> None:
        """Take what changed until now as known: the whole is compared, not the change."""
        self._touched = {}
        for uses in (self._addresses, self._hairpins, self._chains):
            uses.settle()

    def take(self) -> tuple[Ruleset, Ruleset]:
        """Return what changed since the last time: as it was, and as it is now."""
        touched, self._touched = self._touched, {}
        addresses, hairpins, chains = self._addresses.take(), self._hairpins.take(), self._chains.take()
        was = _only(touched.items(), addresses[0], hairpins[0], chains[0])
        now = [(place, self._places.get(place)) for place in touched]
        return was, _only(now, addresses[1], hairpins[1], chains[1])


def _only(
    places: Iterable[tuple[Place, tuple[Target, ...] | None]],
    addresses: frozenset[str],
    hairpins: frozenset[str],
    chains: frozenset[int],
) -> Ruleset:
    led = {place: targets for place, targets in places if targets is not None}
    return Ruleset(
        endpoints={(*place, i): target for place, targets in led.items() for i, target in enumerate(targets)},
        services={place: len(targets) for place, targets in led.items() if targets},
        refused=frozenset(place for place, targets in led.items() if not targets),
        addresses=addresses,
        hairpins=hairpins,
        chains=chains,
    )


def build(decisions: Iterable[Decision], node_addresses: Sequence[str]) -> Ruleset:
    """Compute the rules of all services at once."""
    composer = Composer()
    for decision in decisions:
        composer.put(decision.service.uid, part(decision, node_addresses))
    return composer.rules
