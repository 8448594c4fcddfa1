"""The chains and sets of services that keep their clients, as a change needs them. No I/O.

An endpoint that stays keeps its chain and its set, and so its clients; the group's own
chain is filled anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from services.proxy.adapters import nfframe
from services.proxy.adapters.nfframe import SETS, Chain
from services.proxy.core import ways
from services.proxy.core.ruleset import Stick, Target

_ENDPOINT = re.compile(r"ep-([a-z2-7]+)-(tcp|udp|sctp)-([1-9]\d*)-(\d+\.\d+\.\d+\.\d+)-([1-9]\d*)")
# No transaction makes as many other sets.
_FIRST_IDENTIFIER = len(SETS) + 1


@dataclass(frozen=True, slots=True)
class StickChange:
    """Chains that come, chains that are filled anew, chains and sets that go; the sets that come belong
    to `new`.
    """

    came: Mapping[str, Chain]
    remade: Mapping[str, Chain]
    gone: AbstractSet[str]
    sets_came: AbstractSet[str]
    sets_gone: AbstractSet[str]
    new: tuple[Stick, ...]

    def new_sets(self, table: str) -> list[bytes]:
        """Encode the messages that make the sets that come."""
        messages: list[bytes] = []
        for stick in self.new:
            for target in stick.targets:
                name = nfframe.stuck_name(stick, target)
                if name in self.sets_came:
                    identifier = _FIRST_IDENTIFIER + len(messages)
                    messages.append(nfframe.new_stuck_set(table, stick, name, identifier))
        return messages


def change(gone: AbstractSet[Stick], new: AbstractSet[Stick]) -> StickChange:
    """Return what a change of groups comes to."""
    before, after = _chains(gone), _chains(new)
    sets_before, sets_after = _sets(gone), _sets(new)
    heads_before, heads_after = _heads(gone), _heads(new)
    return StickChange(
        came={name: c for name, c in {**after, **heads_after}.items() if name not in before | heads_before},
        remade={name: c for name, c in heads_after.items() if name in heads_before},
        gone=(before.keys() - after.keys()) | (heads_before.keys() - heads_after.keys()),
        sets_came=sets_after - sets_before,
        sets_gone=sets_before - sets_after,
        new=tuple(sorted(new)),
    )


def _chains(sticks: Iterable[Stick]) -> dict[str, Chain]:
    return {name: c for stick in sticks for name, c in nfframe.endpoint_chains(stick).items()}


def _heads(sticks: Iterable[Stick]) -> dict[str, Chain]:
    return {ways.name(ways.sticky(stick.group)): nfframe.sticky_chain(stick) for stick in sticks}


def _sets(sticks: Iterable[Stick]) -> set[str]:
    return {nfframe.stuck_name(stick, target) for stick in sticks for target in stick.targets}


def expected(sticks: Iterable[Stick]) -> tuple[dict[str, Chain], set[str]]:
    """Return all chains and sets that groups have."""
    made = list(sticks)
    return {**_chains(made), **_heads(made)}, _sets(made)


def read(names: Iterable[str]) -> list[Stick]:
    """Tell from the names of chains which groups there are. Whether they are whole is not looked at."""
    groups: dict[tuple[str, str, int], list[Target]] = {}
    for name in names:
        found = _ENDPOINT.fullmatch(name)
        if found:
            group, protocol, timeout, address, port = found.groups()
            groups.setdefault((group, protocol, int(timeout)), []).append((address, int(port)))
    return [Stick(*head, tuple(targets)) for head, targets in groups.items()]
