"""Which containers of ours a list of the engine must show. Pure.

An engine that restarts, or something before it, may answer with less than it has. A
container of ours that a list leaves out has gone only if it cannot be found by its
id either: else the list is not believed, and nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from services.kubelet.cri.naming import Record


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list was asked for; empty parts select everything."""

    kind: str = ""
    uid: str = ""
    sandbox_id: str = ""

    def takes(self, kind: str, uid: str, sandbox_id: str) -> bool:
        """Tell whether a container belongs into the list."""
        pairs = ((self.kind, kind), (self.uid, uid), (self.sandbox_id, sandbox_id))
        return all(not wanted or wanted == value for wanted, value in pairs)


class Census:
    """Remembers under what each id is listed. What it was never told of may be anything."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str, str]] = {}
        self._attempts: dict[tuple[str, str, str, int], str] = {}

    def note(self, container_id: str, record: Record, uid: str) -> None:
        """Remember a container."""
        self._known[container_id] = (record.kind, uid, record.sandbox_id)
        self._attempts[record.kind, uid, record.name, record.attempt] = container_id

    def forget(self, container_id: str) -> None:
        """Forget one that is gone. May be repeated."""
        self._known.pop(container_id, None)
        for key in [key for key, held in self._attempts.items() if held == container_id]:
            del self._attempts[key]

    def attempt(self, record: Record, uid: str) -> str:
        """Return the id that has this kind, pod, name and attempt; "" when it was told of none."""
        return self._attempts.get((record.kind, uid, record.name, record.attempt), "")

    def unknown(self, ids: Collection[str]) -> bool:
        """Tell whether it was never told of one of these."""
        return not self._known.keys() >= set(ids)

    def expected(self, ids: Collection[str], selection: Selection) -> set[str]:
        """Return those of our ids that a list must show, unless they have gone."""
        return {i for i in ids if i not in self._known or selection.takes(*self._known[i])}
