"""What the engine matrix says of an event log: the judge of the judged."""

from __future__ import annotations

import pytest

from tests.matrix.engine import Happened, judge_history
from tests.matrix.process import Failure

pytestmark = pytest.mark.fault("F1")


def entry(action: str, container: str, attempt: int, suffix: str = "") -> Happened:
    """Write one entry of the pod `victim`."""
    label = "POD" if container == "POD" else container
    kind = "podsandbox" if container == "POD" else "container"
    name = f"k8s_{container}_victim_default_uid_{attempt}"
    return Happened(action, f"{container}-{attempt}{suffix}", name, kind, "uid", label)


def story() -> list[Happened]:
    """Write a pod's whole life: two containers, of which one crashes and starts again."""
    made = [entry(action, name, 0) for name in ("POD", "app", "side") for action in ("create", "start")]
    made += [entry("die", "app", 0), entry("create", "app", 1), entry("start", "app", 1)]
    made += [entry("die", "app", 1), entry("die", "side", 0), entry("die", "POD", 0)]
    return made + [entry("destroy", n, a) for n, a in (("app", 0), ("app", 1), ("side", 0), ("POD", 0))]


def test_a_plain_life_is_right() -> None:
    """Each attempt is created and started once, and removed."""
    judge_history(story())


def test_one_that_was_created_and_never_started_may_be_made_anew() -> None:
    """A kill between create and start leaves one; it goes before the next of its name comes."""
    first = [entry("create", "side", 0, "x"), entry("destroy", "side", 0, "x")]

    judge_history([*first, *story()])


@pytest.mark.parametrize(
    ("more", "at", "found"),
    [
        pytest.param([entry("start", "side", 0)], 6, "I3", id="started-twice"),
        pytest.param([entry("create", "side", 0, "x")], 6, "I3", id="created-twice"),
        pytest.param([entry("start", "POD", 1)], 6, "I3", id="two-sandboxes-live"),
        pytest.param([entry("create", "POD", 1)], 99, "I4", id="never-removed"),
        pytest.param([entry("create", "app", 2), entry("start", "app", 2)], 9, "I3", id="one-attempt-more"),
    ],
)
def test_what_must_not_happen_is_found(more: list[Happened], at: int, found: str) -> None:
    """Each invariant has a history that breaks it."""
    history = story()
    history[at:at] = more

    with pytest.raises(Failure, match=found):
        judge_history(history)
