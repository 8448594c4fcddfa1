"""What a list of the engine must show."""

from __future__ import annotations

import pytest

from services.kubelet.cri.census import Census, Selection
from services.kubelet.cri.naming import CONTAINER, SANDBOX, Record


@pytest.fixture
def census() -> Census:
    """Know a sandbox and its container."""
    made = Census()
    made.note("box", Record(SANDBOX, "web"), "uid-1")
    made.note("app", Record(CONTAINER, "app", sandbox_id="box"), "uid-1")
    return made


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        pytest.param(Selection(), {"box", "app", "new"}, id="everything"),
        pytest.param(Selection(SANDBOX), {"box", "new"}, id="a-kind"),
        pytest.param(Selection(CONTAINER, "uid-1"), {"app", "new"}, id="a-pod"),
        pytest.param(Selection(CONTAINER, "uid-2"), {"new"}, id="another-pod"),
        pytest.param(Selection(CONTAINER, sandbox_id="box"), {"app", "new"}, id="a-sandbox"),
    ],
)
def test_what_was_never_seen_may_belong_into_any_list(
    census: Census, selection: Selection, expected: set[str]
) -> None:
    """An id from the register of an earlier run is expected everywhere until it is known."""
    found = census.expected(["box", "app", "new"], selection)

    assert found == expected


def test_what_is_forgotten_is_unknown_again(census: Census) -> None:
    """Forgetting may be repeated."""
    census.forget("app")
    census.forget("app")

    assert census.unknown(["app", "box"])
    assert not census.unknown(["box"])


def test_an_attempt_is_known_by_its_pod_name_and_number(census: Census) -> None:
    """Whatever the engine calls it; forgotten with its id."""
    census.note("app-2", Record(CONTAINER, "app", attempt=2, sandbox_id="box"), "uid-1")
    wanted = Record(CONTAINER, "app", attempt=2)

    assert census.attempt(wanted, "uid-1") == "app-2"
    assert census.attempt(wanted, "uid-2") == ""
    assert census.attempt(Record(CONTAINER, "app", attempt=1), "uid-1") == ""
    census.forget("app-2")
    assert census.attempt(wanted, "uid-1") == ""
