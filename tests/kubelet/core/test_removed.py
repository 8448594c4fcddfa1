"""Containers that somebody removed or paused at the runtime."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.kubelet.core import plan
from services.kubelet.core.model import RestartPolicy
from services.kubelet.core.observed import PAUSED, ObservedPod, RuntimeState
from services.kubelet.core.plan import Memory, plan_pod
from tests.builders import a_container, a_pod, an_instance, observed

NOW = 1000.0
RUNNING, EXITED, CREATED, UNKNOWN = (
    RuntimeState.RUNNING,
    RuntimeState.EXITED,
    RuntimeState.CREATED,
    RuntimeState.UNKNOWN,
)


def look(memory: Memory, seen: ObservedPod) -> tuple[Memory, ObservedPod]:
    """Look once, as a worker does."""
    memory = plan.look_again(memory, seen)
    return memory, plan.recall(memory, seen)


def test_a_removed_container_counts_as_killed() -> None:
    """The next instance is the next attempt, and the look after still knows the one before."""
    memory, _ = look(Memory(), observed(an_instance(RUNNING, 2)))

    memory, seen = look(memory, observed())
    actions = plan_pod(a_pod(), seen, memory, NOW)
    memory, after = look(memory, observed(an_instance(RUNNING, 3)))

    start = next(action for action in actions if isinstance(action, plan.StartContainer))
    assert start.attempt == 3
    assert [(c.attempt, c.state, c.removed) for c in after.containers] == [
        (3, RUNNING, False),
        (2, EXITED, True),
    ]
    assert (after.containers[1].exit_code, after.containers[1].reason) == (137, "ContainerStatusUnknown")
    assert plan_pod(a_pod(), after, memory, NOW) == ()


@pytest.mark.parametrize(
    ("policy", "state", "exit_code", "restarts"),
    [
        pytest.param(RestartPolicy.ALWAYS, EXITED, 0, True, id="always"),
        pytest.param(RestartPolicy.ON_FAILURE, EXITED, 0, False, id="it-had-ended-well"),
        pytest.param(RestartPolicy.ON_FAILURE, RUNNING, 0, True, id="nobody-knows-how-it-ended"),
        pytest.param(RestartPolicy.NEVER, RUNNING, 0, False, id="never"),
        pytest.param(RestartPolicy.NEVER, EXITED, 0, False, id="it-was-done"),
    ],
)
def test_a_removed_container_restarts_as_its_policy_says(
    policy: RestartPolicy, state: RuntimeState, exit_code: int, *, restarts: bool
) -> None:
    """It ended as it had, or as if it was killed."""
    memory, _ = look(Memory(), observed(an_instance(state, exit_code=exit_code)))

    memory, seen = look(memory, observed())

    actions = plan_pod(a_pod(restart_policy=policy), seen, memory, NOW)
    assert any(isinstance(action, plan.StartContainer) for action in actions) is restarts


def test_one_that_never_started_is_forgotten() -> None:
    """No attempt is counted for it."""
    memory, _ = look(Memory(), observed(an_instance(CREATED)))

    _, seen = look(memory, observed())

    assert seen.containers == ()


def test_old_ones_are_forgotten_in_time() -> None:
    """Memory holds one removed instance of each container at most."""
    memory = Memory()
    for attempt in range(20):
        memory, _ = look(memory, observed(an_instance(RUNNING, attempt)))

    assert [c.attempt for c in memory.gone] == [18]


def test_a_paused_container_is_left_alone() -> None:
    """Whoever paused it lets it go on."""
    paused = replace(an_instance(UNKNOWN), reason=PAUSED)

    assert plan_pod(a_pod(), observed(paused), Memory(), NOW) == ()


def test_one_of_which_nobody_knows_whether_it_runs_is_stopped_first() -> None:
    """Before anything of its name starts."""
    actions = plan_pod(a_pod(), observed(an_instance(UNKNOWN)), Memory(), NOW)

    assert [type(action) for action in actions] == [plan.StopContainer]


def test_what_outlived_its_sandbox_is_stopped_before_it_starts_again() -> None:
    """Never two of one name; the old one is removed once the new one is there."""
    pod = a_pod(a_container())
    homeless = observed(an_instance(RUNNING), sandboxes=())

    actions = [type(action) for action in plan_pod(pod, homeless, Memory(), NOW)]

    assert actions == [plan.StopContainer, plan.CreateSandbox, plan.PullImage, plan.StartContainer]
