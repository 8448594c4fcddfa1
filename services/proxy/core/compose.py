"""All services' rules as one ruleset, kept current service by service. Pure.

A change of one service costs what that service has, however many others there are;
what comes out is the same as from all services anew. Where two services claim one
place, which the kubelet refuses, the smaller UID has it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Generic, TypeVar

from services.proxy.core import ways
from services.proxy.core.model import Decision
from services.proxy.core.parts import Lead, Part, Surroundings, part
from services.proxy.core.ruleset import Allowed, Masquerade, Place, Ruleset, Slot, Stick, Target
from services.proxy.core.ways import FIRST_LOCAL_INDEX, Way

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
        self._places: dict[Place, Lead] = {}
        self._endpoints: dict[Slot, Target] = {}
        self._services: dict[Place, Way] = {}
        self._refused: set[Place] = set()
        self._masquerades: dict[Place, Masquerade] = {}
        self._guarded: set[Place] = set()
        self._allowed: set[Allowed] = set()
        self._serving: dict[Place, frozenset[Target]] = {}
        self._addresses = _Uses[str]()
        self._hairpins = _Uses[str]()
        self._chains = _Uses[Way]()
        self._pods = _Uses[str]()
        self._sticks = _Uses[Stick]()
        self._touched: dict[Place, Lead | None] = {}
        self.rules = Ruleset(
            endpoints=self._endpoints,
            services=self._services,
            refused=self._refused,
            addresses=self._addresses.present,
            hairpins=self._hairpins.present,
            chains=self._chains.present,
            masquerades=self._masquerades,
            pods=self._pods.present,
            guarded=self._guarded,
            allowed=self._allowed,
            sticks=self._sticks.present,
            serving=self._serving,
        )

    def surround(self, around: Surroundings) -> None:
        """Set what of the node is in the rules whatever services there are."""
        pods = around.pods if around.shared else ()
        self._pods.move([one for one in self._pods.present if one not in pods], ())
        self._pods.move((), [one for one in pods if one not in self._pods.present])

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
        if before.sticks or after.sticks:
            self._sticks.move(before.sticks, after.sticks)
            self._hairpins.move(_stuck(before), _stuck(after))
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

    def _lead(self, place: Place, after: Lead | None) -> None:
        """Let a place lead elsewhere; None lets it lead nowhere, and not refuse either."""
        before = self._places.get(place)
        if before == after:
            return
        self._touched.setdefault(place, before)
        old, new = before or _NOWHERE, after or _NOWHERE
        for first, gone, came in ((0, old.targets, new.targets), (FIRST_LOCAL_INDEX, old.local, new.local)):
            for index in range(first + len(came), first + len(gone)):
                del self._endpoints[(*place, index)]
            for index, target in enumerate(came, first):
                self._endpoints[(*place, index)] = target
            self._hairpins.move([target[0] for target in gone], [target[0] for target in came])
        self._chains.move(_shared(old), _shared(new))
        if new.way is not None:
            self._services[place] = new.way
        else:
            self._services.pop(place, None)
        (self._refused.add if after and after.way is None else self._refused.discard)(place)
        if new.serving:
            self._serving[place] = new.serving
        else:
            self._serving.pop(place, None)
        if old.masquerade is not new.masquerade or old.sources != new.sources:
            self._decorate(place, old, new)
        if after is None:
            del self._places[place]
        else:
            self._places[place] = after

    def _decorate(self, place: Place, old: Lead, new: Lead) -> None:
        if new.masquerade is None:
            self._masquerades.pop(place, None)
        else:
            self._masquerades[place] = new.masquerade
        (self._guarded.add if new.sources else self._guarded.discard)(place)
        self._allowed.difference_update((*place, source) for source in old.sources)
        self._allowed.update((*place, source) for source in new.sources)

    def settle(self) -> None:
        """Take what changed until now as known: the whole is compared, not the change."""
        self._touched = {}
        for uses in (self._addresses, self._hairpins, self._chains, self._pods, self._sticks):
            uses.settle()

    def take(self) -> tuple[Ruleset, Ruleset]:
        """Return what changed since the last time: as it was, and as it is now."""
        touched, self._touched = self._touched, {}
        addresses, hairpins, chains = self._addresses.take(), self._hairpins.take(), self._chains.take()
        pods, sticks = self._pods.take(), self._sticks.take()
        was, now = (
            replace(
                _only(places),
                addresses=addresses[half],
                hairpins=hairpins[half],
                chains=chains[half],
                pods=pods[half],
                sticks=sticks[half],
            )
            for half, places in (
                (0, touched.items()),
                (1, [(place, self._places.get(place)) for place in touched]),
            )
        )
        return was, now


_NOWHERE = Lead(None)


def _shared(lead: Lead) -> tuple[Way, ...]:
    return () if lead.way is None else ways.shared(lead.way)


def _stuck(of: Part) -> list[str]:
    return [target[0] for stick in of.sticks for target in stick.targets]


def _only(places: Iterable[tuple[Place, Lead | None]]) -> Ruleset:
    led = {place: lead for place, lead in places if lead is not None}
    endpoints: dict[Slot, Target] = {}
    for place, lead in led.items():
        endpoints |= {(*place, index): target for index, target in enumerate(lead.targets)}
        endpoints |= {(*place, index): target for index, target in enumerate(lead.local, FIRST_LOCAL_INDEX)}
    return Ruleset(
        endpoints=endpoints,
        services={place: lead.way for place, lead in led.items() if lead.way is not None},
        refused=frozenset(place for place, lead in led.items() if lead.way is None),
        masquerades={place: lead.masquerade for place, lead in led.items() if lead.masquerade is not None},
        guarded=frozenset(place for place, lead in led.items() if lead.sources),
        allowed=frozenset((*place, source) for place, lead in led.items() for source in lead.sources),
        serving={place: lead.serving for place, lead in led.items() if lead.serving},
    )


def build(decisions: Iterable[Decision], around: Surroundings) -> Ruleset:
    """Compute the rules of all services at once."""
    composer = Composer()
    composer.surround(around)
    for decision in decisions:
        composer.put(decision.service.uid, part(decision, around))
    return composer.rules
