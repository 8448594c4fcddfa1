"""Why a pod that begins is not Ready yet: which init container, which sidecar, which hook."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.kubelet.core.backoff import Backoff
from services.kubelet.core.explain import Cause, Verdict
from services.kubelet.core.memory import HookState, Memory, Over
from services.kubelet.core.model import ContainerId, ExecAction, Lifecycle, RestartPolicy
from services.kubelet.core.observed import ObservedContainer, RuntimeState
from tests.builders import a_container, a_pod, an_instance, observed
from tests.kubelet.core.test_explain import MONOTONIC, ago, status_of, why

RUNNING, EXITED = RuntimeState.RUNNING, RuntimeState.EXITED
HOOK = Lifecycle(post_start=ExecAction(("x",)))
SIDE = a_container(name="side", restart_policy=RestartPolicy.ALWAYS, lifecycle=HOOK)
POD = a_pod(init_containers=(a_container(name="first"), SIDE))


def one(name: str, state: RuntimeState, code: int = 0, attempt: int = 0) -> ObservedContainer:
    """Make an instance that started a minute ago."""
    made = an_instance(state, attempt, name=name, exit_code=code, started_at=ago(60), finished_at=ago(5))
    return replace(made, id=ContainerId(f"{name}-{attempt}"))


def brief(causes: tuple[Cause, ...]) -> list[tuple[str, str]]:
    """Name containers and reasons."""
    return [(cause.container, cause.reason) for cause in causes]


def test_a_running_init_container_is_named_with_its_place() -> None:
    """The others wait for it."""
    found = why(POD, observed(one("first", RUNNING)))

    assert brief(found.causes) == [("first", "Initializing"), ("app", "PodInitializing")]
    assert found.message == "pod/web is not Ready: container first: Initializing"
    assert found.causes[0].message == "it runs: init container 1 of 2"
    assert found.causes[0].next_step == "side is started when it has ended with exit code 0"
    assert found.causes[0].since == ago(60)
    assert found.causes[1].message == "it waits for init container first"


def test_an_init_container_that_fails_says_when_it_is_tried_again() -> None:
    """As any other container does."""
    memory = Memory(crashes={"first": Backoff(20.0, MONOTONIC - 12)})
    found = why(POD, observed(one("first", EXITED, 7, attempt=2)), memory=memory)

    assert brief(found.causes) == [("first", "CrashLoopBackOff"), ("app", "PodInitializing")]
    assert found.causes[0].message == "it ended with exit code 7 after 55 s; it has ended 3 times"
    assert found.causes[0].next_seconds == 8


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, "PostStartHook"),
        (HookState.RUNNING, "PostStartHook"),
        (HookState.FAILED, "PostStartHookFailed"),
    ],
)
def test_a_hook_that_is_waited_for_is_told(state: HookState | None, reason: str) -> None:
    """Nothing after its container starts."""
    hooks = {ContainerId("side-0"): state} if state else {}
    seen = observed(one("first", EXITED), one("side", RUNNING))

    found = why(POD, seen, memory=Memory(hooks=hooks))

    assert brief(found.causes) == [("side", reason), ("app", "PodInitializing")]


def test_a_pod_that_failed_while_it_began_tells_what_never_ran() -> None:
    """And what failed."""
    pod = replace(POD, spec=replace(POD.spec, restart_policy=RestartPolicy.NEVER))
    found = why(pod, observed(one("first", EXITED, 7)))

    assert found.verdict is Verdict.FINISHED
    assert brief(found.causes) == [("first", "Error"), ("side", "NotStarted"), ("app", "NotStarted")]


def test_a_pod_whose_time_is_up_says_so_first() -> None:
    """Before the ends of its containers."""
    over = Over("DeadlineExceeded", "too long")
    seen = observed(one("app", EXITED, 137))
    found = why(a_pod(), seen, status=status_of(a_pod(), seen, over=over))

    assert brief(found.causes) == [("", "DeadlineExceeded"), ("app", "Error")]
