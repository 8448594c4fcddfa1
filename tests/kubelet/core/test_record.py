"""What a pod's worker keeps for the run after it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.core.model import ContainerId, PodUid, SandboxId
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.plan import Memory, look_again, recall
from services.kubelet.core.record import PodRecord, decode, encode, record, remembered

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
ENDED = ObservedContainer(
    id=ContainerId("c1"),
    name="app",
    attempt=2,
    state=RuntimeState.EXITED,
    sandbox_id=SandboxId("box"),
    started_at=MOMENT,
    finished_at=MOMENT,
    exit_code=3,
    reason="Error",
)


def test_a_record_is_read_as_it_was_written() -> None:
    """Times, states and what was removed included."""
    removed = replace(ENDED, id=ContainerId("c0"), removed=True)
    wanted = PodRecord(MOMENT, (ENDED,), (removed,), (ContainerId("c1"),))

    assert decode(encode(wanted)) == wanted
    assert decode(encode(PodRecord())) == PodRecord()


def test_a_record_of_before_startup_probes_is_read() -> None:
    """Nothing had begun then."""
    text = encode(PodRecord(MOMENT, (ENDED,))).replace(', "begun": []', "")

    assert "begun" not in text
    assert decode(text) == PodRecord(MOMENT, (ENDED,))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("{", id="torn"),
        pytest.param("[]", id="a-list"),
        pytest.param('{"version": 99}', id="of-another-version"),
        pytest.param('{"version": 1, "start_time": 5, "seen": [], "gone": []}', id="a-number-for-a-time"),
        pytest.param('{"version": 1, "start_time": null, "seen": [{}], "gone": []}', id="no-container"),
    ],
)
def test_what_is_no_record_is_none(text: str) -> None:
    """It is as if nothing had been kept."""
    assert decode(text) is None


@given(st.integers(0, 400), st.text(max_size=3))
def test_a_damaged_record_never_raises(place: int, put: str) -> None:
    """Wherever it is damaged."""
    text = encode(PodRecord(MOMENT, (ENDED,)))

    decode(text[:place] + put + text[place + 1 :])


def test_a_container_that_went_between_two_runs_has_ended() -> None:
    """The second run knows it from the first one's record, with its attempt and its end."""
    uid = PodUid("u")
    before = look_again(Memory(), ObservedPod(uid, containers=(ENDED,)))
    kept = decode(encode(record(before, MOMENT)))
    assert kept is not None

    after = recall(look_again(remembered(Memory(), kept), ObservedPod(uid)), ObservedPod(uid))

    assert [(c.id, c.attempt, c.exit_code, c.removed) for c in after.containers] == [("c1", 2, 3, True)]
