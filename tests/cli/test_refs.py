"""How people may name objects, durations and selectors."""

from __future__ import annotations

import pytest

from cli.errors import CliError, Exit
from cli.refs import Ref, labels, one, parse, seconds


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pods"], [Ref("Pod")]),
        (["pod", "a", "b"], [Ref("Pod", "a"), Ref("Pod", "b")]),
        (["svc/web", "pod/a"], [Ref("Service", "web"), Ref("Pod", "a")]),
    ],
)
def test_objects_are_named_as_with_kubectl(words: list[str], expected: list[Ref]) -> None:
    """Habits carry over."""
    assert parse(words) == expected


@pytest.mark.parametrize("words", [[], ["deploy/web"], ["pod/"], ["pod/a", "b"]])
def test_a_bad_name_is_a_usage_error(words: list[str]) -> None:
    """Exit code 2, and no call."""
    with pytest.raises(CliError) as caught:
        parse(words)

    assert caught.value.code is Exit.USAGE


def test_a_bare_name_is_a_pod() -> None:
    """`tripod logs web` means the pod."""
    assert one(["web"]) == Ref("Pod", "web")


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("30s", 30), ("1m30s", 90), ("2h", 7200), ("0.5s", 0.5)]
)
def test_durations_are_written_as_in_kubernetes(text: str, expected: float) -> None:
    """Units may be joined."""
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "5d", "-1s"])
def test_other_durations_are_refused(text: str) -> None:
    """A guess would wait for the wrong time."""
    with pytest.raises(CliError):
        seconds(text)


def test_a_selector_is_pairs() -> None:
    """Both = and == are equality."""
    assert labels("app=web,tier==front") == {"app": "web", "tier": "front"}
