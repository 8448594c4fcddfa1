"""How events are written, joined and limited."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.kubelet.core import kube_event
from services.kubelet.core.events import Event
from services.kubelet.core.kube_event import Correlator, Reference

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def an_event(message: str = "it ended", *, at: float = 0, reason: str = "BackOff", uid: str = "u") -> Event:
    """Make an event."""
    when = NOW + timedelta(seconds=at)
    return Event("default", "web", uid, reason, message, when, when, "app", warning=True)


def test_an_event_is_written_as_the_original_does() -> None:
    """kubectl finds it by the pod's UID, and the container by its path."""
    about = Reference("Pod", "web", "u", "default", kube_event.field_path("app", None))

    body = kube_event.body(an_event(), about, node="worker", name="web.1")

    assert body["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "default",
        "name": "web",
        "uid": "u",
        "fieldPath": "spec.containers{app}",
    }
    assert (body["type"], body["count"], body["reason"]) == ("Warning", 1, "BackOff")
    assert body["source"] == {"component": "kubelet", "host": "worker"}


def test_long_messages_are_cut() -> None:
    """The API refuses more than 1024 characters."""
    body = kube_event.body(
        an_event("x" * 5000), Reference("Pod", "web", "u", "default"), node="worker", name="n"
    )

    assert len(body["message"]) == 1024


def test_more_than_ten_similar_ones_become_one() -> None:
    """A message that differs each time must not fill the API."""
    correlator = Correlator()

    told = [correlator.take(an_event(f"try {n}", at=n)) for n in range(13)]

    assert [event.message for event in told[9:] if event] == [
        "try 9",
        "(combined from similar events): try 10",
        "(combined from similar events): try 11",
        "(combined from similar events): try 12",
    ]
    assert [event.count for event in told[10:] if event] == [1, 2, 3]
    assert len({Correlator.key(event) for event in told[10:] if event}) == 1


def test_similar_ones_far_apart_are_not_joined() -> None:
    """After ten minutes it is news."""
    correlator = Correlator()
    for number in range(10):
        correlator.take(an_event(f"try {number}"))

    late = correlator.take(an_event("try again", at=601))

    assert late is not None
    assert late.message == "try again"


def test_one_object_cannot_flood() -> None:
    """25 at once, then one each five minutes; another object has its own."""
    correlator = Correlator()

    told = [correlator.take(an_event("same")) for _ in range(30)]

    assert sum(event is not None for event in told) == 25
    assert correlator.take(an_event("same", uid="other")) is not None
    assert correlator.take(an_event("same", at=299)) is None
    assert correlator.take(an_event("same", at=301)) is not None
