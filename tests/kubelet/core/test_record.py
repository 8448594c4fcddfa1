"""What a pod's worker keeps for the run after it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.core.memory import HookState, Over
from services.kubelet.core.model import ContainerId, PodUid, SandboxId
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.plan import Memory, look_again, recall
from services.kubelet.core.record import PodRecord, decode, encode, record, remembered
from tests.builders import a_sandbox, observed

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
    wanted = PodRecord(
        MOMENT,
        (ENDED,),
        (removed,),
        begun=(ContainerId("c1"),),
        hooked=(ContainerId("c2"),),
        changed=(ContainerId("c3"),),
        over=Over("DeadlineExceeded", "too long"),
    )

    assert decode(encode(wanted)) == wanted
    assert decode(encode(PodRecord())) == PodRecord()


def test_a_record_of_an_older_kubelet_is_read() -> None:
    """It knows nothing of startup probes, hooks, changed containers and deadlines."""
    values = json.loads(encode(PodRecord(MOMENT, (ENDED,))))
    for name in ("begun", "hooked", "changed", "over"):
        del values[name]
    del values["seen"][0]["spec_hash"]

    assert decode(json.dumps(values)) == PodRecord(MOMENT, (ENDED,))


def test_only_hooks_that_have_succeeded_are_kept() -> None:
    """Any other is run again by the next run."""
    states = (HookState.RUNNING, HookState.DONE, HookState.FAILED)
    memory = Memory(hooks={ContainerId(state.value): state for state in states})

    kept = remembered(Memory(), record(memory, MOMENT))

    assert kept.hooks == {ContainerId("done"): HookState.DONE}


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


def test_the_addresses_of_a_sandbox_that_has_stopped_are_known_to_the_next_run() -> None:
    """The runtime tells them of one that runs alone."""
    ran = look_again(Memory(), observed(sandboxes=(a_sandbox(),)))
    stopped = look_again(ran, observed(sandboxes=(a_sandbox(ready=False),)))
    kept = decode(encode(record(stopped, MOMENT)))
    assert kept is not None

    assert remembered(Memory(), kept).addresses == a_sandbox().addresses
    assert a_sandbox().addresses
