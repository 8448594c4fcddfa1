"""Events are told once, in order, through breaks and restarts of the engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.cri import events
from services.kubelet.cri.events import Fold, Stage, Subject
from services.kubelet.cri.naming import CONTAINER, SANDBOX, Record

CREATED, STARTED, STOPPED, DELETED = Stage


def subject(container_id: str = "a") -> Subject:
    """Name one."""
    return Subject(container_id, Record(CONTAINER, "app", sandbox_id="box"), Record(SANDBOX, "web"))


def told(found: list[events.Happening]) -> list[tuple[str, Stage]]:
    """Shorten."""
    return [(happening.subject.container_id, happening.stage) for happening in found]


def test_a_life_is_told_in_order() -> None:
    """All four types."""
    fold = Fold()
    found = [h for time, stage in enumerate(Stage, 1) for h in fold.event(subject(), stage, time)]

    assert told(found) == [("a", stage) for stage in Stage]
    assert fold.time == 4


def test_a_replay_tells_nothing() -> None:
    """After a break the engine begins with the last event's own moment."""
    fold = Fold()
    fold.event(subject(), CREATED, 5)
    fold.event(subject(), STARTED, 5)

    assert fold.event(subject(), CREATED, 4) == []
    assert fold.event(subject(), STARTED, 5) == []
    assert told(fold.event(subject("b"), CREATED, 5)) == [("b", CREATED)]


def test_a_list_makes_up_for_events_that_never_came() -> None:
    """An engine that was restarted remembers none; each step is told."""
    fold = Fold()
    fold.begin(1, [(subject("running"), STARTED), (subject("removed"), STOPPED)])
    found = fold.listed([(subject("running"), STOPPED), (subject("fresh"), STOPPED)], 9)

    assert told(found) == [
        ("running", STOPPED),
        *(("fresh", stage) for stage in (CREATED, STARTED, STOPPED)),
        ("removed", DELETED),
    ]
    assert fold.listed([(subject("running"), STOPPED), (subject("fresh"), STOPPED)], 10) == []


def test_what_a_list_told_is_not_told_again_by_the_replay_after_it() -> None:
    """The list comes first, then the engine's memory of the same."""
    fold = Fold()
    fold.begin(1, [(subject(), STARTED)])
    fold.listed([], 9)

    assert fold.event(subject(), STOPPED, 3) == []
    assert fold.event(subject(), DELETED, 4) == []


def test_what_was_there_at_the_beginning_is_not_told() -> None:
    """Events are from now on."""
    fold = Fold()
    fold.begin(7, [(subject(), STARTED)])

    assert fold.event(subject(), STARTED, 6) == []
    assert told(fold.event(subject(), STOPPED, 8)) == [("a", STOPPED)]


def test_one_that_ended_may_start_again() -> None:
    """Somebody did `docker start`."""
    fold = Fold()
    fold.begin(1, [(subject(), STOPPED)])

    assert told(fold.event(subject(), STARTED, 2)) == [("a", STARTED)]
    assert told(fold.event(subject(), STOPPED, 3)) == [("a", STOPPED)]
    assert told(fold.listed([(subject(), STARTED)], 4)) == [("a", STARTED)]


LIFE = st.lists(st.sampled_from("abc"), max_size=30)


@given(LIFE, st.lists(st.integers(0, 30), max_size=4))
def test_breaks_anywhere_lose_and_double_nothing(steps: list[str], breaks: list[int]) -> None:
    """Containers live step by step; at a break all is listed, and everything since is replayed."""
    fold, stages, history, found = Fold(), dict[str, int](), list[tuple[str, Stage, int]](), []
    for time, name in enumerate(steps, 1):
        stage = stages.get(name, -1) + 1
        if stage > DELETED:
            continue
        stages[name] = stage
        history.append((name, Stage(stage), time))
        if time in breaks:
            standing = [(subject(n), Stage(s)) for n, s in stages.items() if s < DELETED]
            found += fold.listed(standing, time)
            for past in history:
                found += fold.event(subject(past[0]), *past[1:])
        else:
            found += fold.event(subject(name), Stage(stage), time)

    for name, stage in stages.items():
        mine = [h.stage for h in found if h.subject.container_id == name]
        assert mine == [Stage(step) for step in range(stage + 1)]


def test_the_tombstones_are_bounded() -> None:
    """A node may live for years."""
    fold = Fold()
    for number in range(3000):
        for stage in (CREATED, DELETED):
            fold.event(subject(str(number)), stage, number * 2 + stage // 2)

    assert len(fold._gone) <= 1024
    assert fold._known == {}


def test_a_subject_knows_its_pod() -> None:
    """From the labels that every container of a pod has."""
    labels = {
        "io.kubernetes.pod.name": "web",
        "io.kubernetes.pod.namespace": "n",
        "io.kubernetes.pod.uid": "u",
    }
    made = events.subject("a", Record(CONTAINER, "app", sandbox_id="box"), labels)
    listed = events.standing([({"Id": "a", "State": "paused", "Labels": labels}, made.record)])

    assert (made.sandbox_id, made.pod.name, made.pod.namespace, made.pod.uid) == ("box", "web", "n", "u")
    assert listed == [(made, STARTED)]
