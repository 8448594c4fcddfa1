"""What lists and events change."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.replica import Change, Replica


def an_item(name: str, revision: int, uid: str = "", value: str = "") -> dict[str, Any]:
    """Make an object whose value is `value`, or says its revision."""
    meta = {"namespace": "ns", "name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(revision)}
    return {"metadata": meta, "value": value or f"{name}@{revision}"}


def read(item: Any) -> str:
    """Read an object."""
    value = str(item["value"])
    if value == "broken":
        raise ValueError(value)
    return value


def a_replica() -> tuple[Replica[str], list[str]]:
    """Make a replica, and a list of keys that could not be read."""
    unreadable: list[str] = []
    return Replica(read, lambda key, _: unreadable.append(key)), unreadable


def test_a_list_tells_what_differs() -> None:
    """After a new list nothing is told twice and nothing is lost."""
    replica, _ = a_replica()
    replica.listed([an_item("same", 1), an_item("changed", 2), an_item("gone", 3)])

    changes = replica.listed([an_item("same", 1), an_item("changed", 5), an_item("new", 6)])

    assert changes == [
        Change("ns/gone", "uid-gone", "gone@3", None),
        Change("ns/changed", "uid-changed", "changed@2", "changed@5"),
        Change("ns/new", "uid-new", None, "new@6"),
    ]


def test_events_that_are_not_newer_change_nothing() -> None:
    """A stream may repeat and reorder."""
    replica, _ = a_replica()
    replica.listed([an_item("a", 5)])

    assert replica.came(an_item("a", 5)) == []
    assert replica.came(an_item("a", 4)) == []
    assert replica.went(an_item("a", 4)) == []
    assert replica.came(an_item("a", 10)) == [Change("ns/a", "uid-a", "a@5", "a@10")]


def test_a_late_event_brings_nothing_back() -> None:
    """What was deleted stays so."""
    replica, _ = a_replica()
    replica.listed([an_item("a", 5)])

    assert replica.went(an_item("a", 9)) == [Change("ns/a", "uid-a", "a@5", None)]
    assert replica.came(an_item("a", 8)) == []
    assert replica.values() == {}


def test_an_object_of_the_same_name_is_another_one() -> None:
    """The old one goes before the new one comes, in lists and in events of any order."""
    replica, _ = a_replica()
    replica.listed([an_item("a", 5, "one")])
    expected = [Change("ns/a", "one", "a@5", None), Change("ns/a", "two", None, "a@9")]

    assert replica.came(an_item("a", 9, "two")) == expected
    assert replica.went(an_item("a", 8, "one")) == []
    assert replica.listed([an_item("a", 12, "three")]) == [
        Change("ns/a", "two", "a@9", None),
        Change("ns/a", "three", None, "a@12"),
    ]


def test_an_object_that_cannot_be_read_stays_as_it_was() -> None:
    """A mistake in one object takes nothing away."""
    replica, unreadable = a_replica()
    replica.listed([an_item("a", 5), an_item("never", 6, value="broken")])

    assert replica.came(an_item("a", 7, value="broken")) == []
    assert replica.values() == {"ns/a": "a@5"}
    assert unreadable == ["ns/never", "ns/a"]
    assert replica.came(an_item("never", 8)) == [Change("ns/never", "uid-never", None, "never@8")]


@given(st.data())
def test_any_order_with_repeats_ends_in_the_same_state(data: st.DataObject) -> None:
    """Whatever a stream repeats or swaps, the newest of each object is what is known."""
    history: list[tuple[str, dict[str, Any]]] = []
    alive: dict[str, str] = {}
    for revision in range(1, data.draw(st.integers(1, 12)) + 1):
        name = data.draw(st.sampled_from("abc"))
        if name in alive and data.draw(st.booleans()):
            history.append(("went", an_item(name, revision, alive.pop(name))))
        else:
            uid = alive.setdefault(name, f"{name}-{revision}")
            history.append(("came", an_item(name, revision, uid)))
    stream = data.draw(st.permutations(history + data.draw(st.lists(st.sampled_from(history), max_size=5))))
    ordered, _ = a_replica()
    shuffled, _ = a_replica()
    told: dict[str, str] = {}

    for kind, item in history:
        getattr(ordered, kind)(item)
    for kind, item in stream:
        for change in getattr(shuffled, kind)(item):
            assert told.get(change.key) == change.before
            if change.after is None:
                del told[change.key]
            else:
                told[change.key] = change.after

    assert shuffled.values() == ordered.values() == told
