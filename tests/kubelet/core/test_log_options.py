"""What readers of logs may ask for, and which instance they mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.kubelet.core.log_choice import LogChoiceError, chosen
from services.kubelet.core.log_options import (
    LogOptions,
    LogStream,
    OptionsError,
    QueryError,
    parse,
    stamp,
    time_ns,
)
from services.kubelet.core.observed import RuntimeState
from services.kubelet.core.status import ContainerState, ContainerStatus, PodPhase, PodStatus, StatePhase
from tests.builders import a_pod, an_instance, observed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_NS = 1_767_225_600 * 10**9


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param({}, LogOptions(), id="all"),
        pytest.param({"follow": ["true"]}, LogOptions(follow=True), id="follow"),
        pytest.param({"follow": [""]}, LogOptions(follow=True), id="a-flag-alone-is-true"),
        pytest.param({"follow": ["false"], "previous": ["0"]}, LogOptions(), id="flags-off"),
        pytest.param({"previous": ["1"]}, LogOptions(previous=True), id="previous"),
        pytest.param({"timestamps": ["True"]}, LogOptions(timestamps=True), id="timestamps"),
        pytest.param({"tailLines": ["10"]}, LogOptions(tail_lines=10), id="tail"),
        pytest.param({"tail": ["3"], "tailLines": ["10"]}, LogOptions(tail_lines=3), id="older-tail-wins"),
        pytest.param({"tail": ["all"], "tailLines": ["10"]}, LogOptions(), id="older-tail-all"),
        pytest.param({"limitBytes": ["7"]}, LogOptions(limit_bytes=7), id="limit"),
        pytest.param({"stream": ["Stderr"]}, LogOptions(stream=LogStream.STDERR), id="stream"),
        pytest.param({"sinceSeconds": ["5"]}, LogOptions(since_ns=NOW_NS - 5 * 10**9), id="since-seconds"),
        pytest.param(
            {"sinceTime": ["2026-01-01T01:00:00.5+01:00"]},
            LogOptions(since_ns=NOW_NS + 5 * 10**8),
            id="since-time-in-any-zone",
        ),
        pytest.param({"insecureSkipTLSVerifyBackend": ["true"]}, LogOptions(), id="of-the-api-server"),
    ],
)
def test_options_are_read_as_the_api_reads_them(query: dict[str, list[str]], expected: LogOptions) -> None:
    """By their names in `PodLogOptions`."""
    assert expected == parse(query, NOW)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"tailLines": ["-1"]}, OptionsError),
        ({"limitBytes": ["0"]}, OptionsError),
        ({"sinceSeconds": ["0"]}, OptionsError),
        ({"sinceSeconds": ["1"], "sinceTime": ["2026-01-01T00:00:00Z"]}, OptionsError),
        ({"stream": ["Stdout"], "tailLines": ["1"]}, OptionsError),
        ({"stream": ["Both"]}, OptionsError),
        ({"tailLines": ["many"]}, QueryError),
        ({"tailLines": ["9" * 30]}, QueryError),
        ({"sinceTime": ["yesterday"]}, QueryError),
        ({"sinceTime": ["2026-13-01T00:00:00Z"]}, QueryError),
    ],
)
def test_what_cannot_be_is_refused(query: dict[str, list[str]], error: type[Exception]) -> None:
    """What cannot be read and what contradicts itself are two answers."""
    with pytest.raises(error):
        parse(query, NOW)


def test_times_have_nine_digits() -> None:
    """As the original writes them; and they are compared by what they mean."""
    assert stamp("2026-01-01T00:00:00.12Z") == "2026-01-01T00:00:00.120000000Z"
    assert stamp("2026-01-01T00:00:00+01:00") == "2026-01-01T00:00:00.000000000+01:00"
    assert time_ns("2026-01-01T00:00:00.000000001Z") == NOW_NS + 1
    assert time_ns("2026-01-01T01:00:00+01:00") == NOW_NS
    assert time_ns("no") is None


def _status(phase: StatePhase, reason: str = "") -> PodStatus:
    container = ContainerStatus("app", "app:1", ContainerState(phase, reason))
    return PodStatus(a_pod().uid, "default", "web", PodPhase.RUNNING, containers=(container,))


RUNNING, EXITED, CREATED = RuntimeState.RUNNING, RuntimeState.EXITED, RuntimeState.CREATED


@pytest.mark.parametrize(
    ("states", "phase", "previous", "expected"),
    [
        pytest.param([RUNNING], StatePhase.RUNNING, False, 0, id="the-running-one"),
        pytest.param([EXITED, RUNNING], StatePhase.RUNNING, True, 0, id="the-one-before"),
        pytest.param([EXITED], StatePhase.WAITING, False, 0, id="the-ended-one-while-the-next-waits"),
        pytest.param([EXITED], StatePhase.WAITING, True, 0, id="which-is-the-previous-too"),
        pytest.param([EXITED, EXITED], StatePhase.TERMINATED, True, 0, id="ended-for-good"),
        pytest.param([EXITED, CREATED], StatePhase.WAITING, False, 0, id="one-that-has-not-started-has-none"),
    ],
)
def test_an_instance_is_chosen_as_the_original_chooses(
    states: list[RuntimeState], phase: StatePhase, previous: bool, expected: int
) -> None:
    """The newest that has started, or the last that ended before."""
    seen = observed(*(an_instance(state, attempt) for attempt, state in enumerate(states)))

    found = chosen(a_pod(), "app", seen, _status(phase), previous=previous)

    assert expected == found.attempt


@pytest.mark.parametrize(
    ("states", "reason", "previous", "words"),
    [
        (
            [],
            "ContainerCreating",
            False,
            'container "app" in pod "web" is waiting to start: ContainerCreating',
        ),
        ([], "ErrImagePull", False, "waiting to start: image can't be pulled"),
        ([], "ImagePullBackOff", False, "waiting to start: trying and failing to pull image"),
        ([], "", False, "waiting to start - no logs yet"),
        ([RUNNING], "", True, 'previous terminated container "app" in pod "web" not found'),
    ],
)
def test_why_there_is_no_log_has_the_originals_words(
    states: list[RuntimeState], reason: str, previous: bool, words: str
) -> None:
    """kubectl shows them."""
    seen = observed(*(an_instance(state) for state in states))
    phase = StatePhase.RUNNING if states else StatePhase.WAITING

    with pytest.raises(LogChoiceError) as caught:
        chosen(a_pod(), "app", seen, _status(phase, reason), previous=previous)

    assert words in str(caught.value)
