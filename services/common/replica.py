"""What is known of a selection of API objects, and what lists and events change of it. No I/O.

- After a list only what differs is a change, by UID: nothing is told twice, nothing is lost.
- An event that is not newer than what is known of its object changes nothing, so streams may
  repeat and reorder. Revisions are compared as numbers (KEP-5504); others only for difference.
- An object of the same name but another UID is another one: the old one goes, then the new one comes.

Source: Kubernetes API concepts, "Efficient detection of changes"; KEP-5504.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from services.common.kuberequest import Json

V = TypeVar("V")
# How many deleted objects are remembered, whose late events would bring them back.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Change(Generic[V]):
    """One object came (`before` is None), went (`after` is None), or changed. `key` is NAMESPACE/NAME."""

    key: str
    uid: str
    before: V | None
    after: V | None


@dataclass(frozen=True, slots=True)
class _Known(Generic[V]):
    """What is known of an object; `value` is None of one that could not be read yet."""

    uid: str
    revision: str
    value: V | None


class Replica(Generic[V]):
    """Objects, read by `read`. One that raises `ValueError` stays as it was; `unreadable` is told its key.

    What has no name or no revision raises `ValueError`: it is no object.
    """

    def __init__(self, read: Callable[[Json], V], unreadable: Callable[[str, ValueError], None]) -> None:
        self._read = read
        self._unreadable = unreadable
        self._known: dict[str, _Known[V]] = {}
        self._gone: dict[str, str] = {}

    def values(self) -> Mapping[str, V]:
        """Return the objects by key."""
        known = self._known.items()
        return MappingProxyType({key: entry.value for key, entry in known if entry.value is not None})

    def listed(self, items: Iterable[Json]) -> list[Change[V]]:
        """Take a complete list: it is the truth, whatever events said before."""
        before, now = self._known, dict[str, _Known[V]]()
        came: list[Change[V]] = []
        for item in items:
            key, uid, revision = _identity(item)
            old = before.get(key)
            if old is not None and old.uid != uid:
                old = None
            if old is not None and old.revision == revision and old.value is not None:
                now[key] = old
                continue
            kept = old.value if old is not None else None
            value = self._value(item, key, kept)
            now[key] = _Known(uid, revision, value)
            if value is not None and value is not kept:
                came.append(Change(key, uid, kept, value))
        went = [
            Change(key, old.uid, old.value, None)
            for key, old in before.items()
            if old.value is not None and (key not in now or now[key].uid != old.uid)
        ]
        self._known = now
        self._gone.clear()
        return went + came

    def came(self, item: Json) -> list[Change[V]]:
        """Take the event of an object that was added or modified."""
        key, uid, revision = _identity(item)
        if self._told(key, uid, revision):
            return []
        old = self._known.get(key)
        changes: list[Change[V]] = []
        if old is not None and old.uid != uid:
            if not newer(revision, old.revision):
                return []
            changes, old = self._remove(key, old.uid, revision), None
        kept = old.value if old is not None else None
        value = self._value(item, key, kept)
        self._known[key] = _Known(uid, revision, value)
        return changes if value is None or value is kept else [*changes, Change(key, uid, kept, value)]

    def went(self, item: Json) -> list[Change[V]]:
        """Take the event of an object that was deleted."""
        key, uid, revision = _identity(item)
        return [] if self._told(key, uid, revision) else self._remove(key, uid, revision)

    def _told(self, key: str, uid: str, revision: str) -> bool:
        known = self._known.get(key)
        seen = known.revision if known is not None and known.uid == uid else self._gone.get(uid, "")
        return bool(seen) and not newer(revision, seen)

    def _remove(self, key: str, uid: str, revision: str) -> list[Change[V]]:
        self._gone[uid] = revision
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        old = self._known.get(key)
        if old is None or old.uid != uid:
            return []
        del self._known[key]
        return [Change(key, uid, old.value, None)] if old.value is not None else []

    def _value(self, item: Json, key: str, kept: V | None) -> V | None:
        try:
            return self._read(item)
        except ValueError as error:
            self._unreadable(key, error)
            return kept


def _identity(item: Json) -> tuple[str, str, str]:
    """Return key, UID and revision of an object."""
    revision = revision_of(item)
    meta = item["metadata"]
    name, namespace = str(meta.get("name") or ""), str(meta.get("namespace") or "")
    if not name:
        raise ValueError("an object has no name")
    key = f"{namespace}/{name}" if namespace else name
    return key, str(meta.get("uid") or key), revision


def revision_of(item: Json) -> str:
    """Return an object's `resourceVersion`. Raises `ValueError` for what has none."""
    meta = item.get("metadata")
    if not isinstance(meta, dict) or not meta.get("resourceVersion"):
        raise ValueError("an object has no revision")
    return str(meta["resourceVersion"])


def newer(revision: str, than: str) -> bool:
    """Tell whether a revision is later than another; of what is no number, whether it differs."""
    if revision.isdecimal() and than.isdecimal():
        return int(revision) > int(than)
    return revision != than
