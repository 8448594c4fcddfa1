"""What is told of pods that begin and end: phases, conditions, states of every kind of container."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from services.kubelet.core.memory import Over
from services.kubelet.core.model import (
    ContainerId,
    ExecAction,
    Lifecycle,
    Pod,
    Probe,
    RestartPolicy,
    SandboxId,
)
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.status import Circumstances, PodPhase, PodStatus, compute_status, to_kubernetes
from tests.builders import a_container, a_pod, a_sandbox, an_instance, observed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING, EXITED = RuntimeState.RUNNING, RuntimeState.EXITED
FIRST = a_container(name="first")
SIDE = a_container(name="side", restart_policy=RestartPolicy.ALWAYS)
SLOW_SIDE = replace(SIDE, startup_probe=Probe(ExecAction(("x",))))
HOOKED = a_container(lifecycle=Lifecycle(post_start=ExecAction(("x",))))
NEVER = RestartPolicy.NEVER


def one(name: str, state: RuntimeState, code: int = 0, box: int = 0) -> ObservedContainer:
    """Make an instance."""
    made = an_instance(state, name=name, exit_code=code, started_at=NOW)
    return replace(made, id=ContainerId(f"{name}-0"), sandbox_id=SandboxId(f"sandbox-{box}"))


def told(pod: Pod, seen: ObservedPod, previous: PodStatus | None = None, **values: Any) -> PodStatus:
    """Compute a status."""
    around = Circumstances(**{"readiness": {}, "waiting": {}, "host_ip": "192.0.2.1", "now": NOW, **values})
    return compute_status(pod, seen, around, previous)


def condition(status: PodStatus, name: str) -> tuple[bool, str, str]:
    """Return a condition."""
    found = next(c for c in status.conditions if c.type == name)
    return found.holds, found.reason, found.message


STOPPED = (a_sandbox(ready=False),)


@pytest.mark.parametrize(
    ("pod", "seen", "phase"),
    [
        pytest.param(
            a_pod(init_containers=(FIRST,)), observed(one("first", RUNNING)), PodPhase.PENDING, id="begins"
        ),
        pytest.param(
            a_pod(init_containers=(FIRST,)),
            observed(one("first", EXITED), one("app", RUNNING)),
            PodPhase.RUNNING,
            id="is-initialized",
        ),
        pytest.param(
            a_pod(init_containers=(FIRST,)),
            observed(one("first", RUNNING, box=1), one("app", EXITED), sandboxes=(a_sandbox(1),)),
            PodPhase.PENDING,
            id="begins-again-in-a-new-sandbox",
        ),
        pytest.param(
            a_pod(init_containers=(SLOW_SIDE,)),
            observed(one("side", RUNNING)),
            PodPhase.PENDING,
            id="waits-for-a-sidecar",
        ),
        pytest.param(
            a_pod(init_containers=(FIRST,), restart_policy=NEVER),
            observed(one("first", EXITED, 1)),
            PodPhase.FAILED,
            id="an-init-container-failed-for-good",
        ),
        pytest.param(
            a_pod(init_containers=(SIDE, FIRST), restart_policy=NEVER),
            observed(one("side", RUNNING), one("first", EXITED, 1)),
            PodPhase.PENDING,
            id="has-not-failed-while-a-sidecar-runs",
        ),
        pytest.param(
            a_pod(init_containers=(SIDE,), restart_policy=NEVER),
            observed(one("side", RUNNING), one("app", EXITED)),
            PodPhase.RUNNING,
            id="has-not-succeeded-while-a-sidecar-runs",
        ),
        pytest.param(
            a_pod(init_containers=(SIDE,), restart_policy=NEVER),
            observed(one("side", EXITED, 137), one("app", EXITED), sandboxes=STOPPED),
            PodPhase.SUCCEEDED,
            id="a-sidecars-exit-code-does-not-count",
        ),
        pytest.param(
            a_pod(a_container(restart_policy=NEVER)),
            observed(one("app", EXITED, 1)),
            PodPhase.FAILED,
            id="a-containers-own-policy-counts",
        ),
    ],
)
def test_a_phase_follows_from_every_container(pod: Pod, seen: ObservedPod, phase: PodPhase) -> None:
    """As the original's `getPhase`."""
    assert told(pod, seen).phase is phase


def test_a_pod_that_begins_says_what_it_waits_for() -> None:
    """Its containers wait with the original's reason."""
    status = told(a_pod(init_containers=(FIRST, SIDE)), observed(one("first", RUNNING)))
    shown = to_kubernetes(status)

    assert condition(status, "Initialized") == (
        False,
        "ContainersNotInitialized",
        "containers with incomplete status: [first side]",
    )
    assert condition(status, "Ready")[2] == "containers with unready status: [side app]"
    assert shown["initContainerStatuses"][1]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert shown["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}


def test_init_containers_that_have_ended_well_are_ready() -> None:
    """A pod that runs stays initialized although a sidecar is down."""
    pod = a_pod(init_containers=(FIRST, SIDE))
    status = told(pod, observed(one("first", EXITED), one("side", EXITED, 1), one("app", RUNNING)))

    assert [(c.ready, c.started) for c in status.init_containers] == [(True, False), (False, False)]
    assert condition(status, "Initialized") == (True, "", "")
    assert condition(status, "Ready") == (
        False,
        "ContainersNotReady",
        "containers with unready status: [side]",
    )


@pytest.mark.parametrize("begun", [False, True])
def test_a_container_with_a_hook_has_started_when_that_has_succeeded(*, begun: bool) -> None:
    """Nor is it ready before."""
    ids = {ContainerId("app-0")} if begun else set()
    status = told(a_pod(HOOKED), observed(one("app", RUNNING)), started=ids, readiness={"app-0": begun})

    assert (status.containers[0].started, status.ready) == (begun, begun)


def test_a_pod_whose_time_is_up_has_failed_once_nothing_runs() -> None:
    """With the reason of the original."""
    over = Over("DeadlineExceeded", "too long")
    pod = a_pod(init_containers=(SIDE,))
    before = told(pod, observed(one("side", RUNNING), one("app", RUNNING)), over=over)
    after = told(pod, observed(one("side", EXITED), one("app", EXITED)), before, over=over)
    later = told(pod, observed(sandboxes=()), after, over=over)

    assert (before.phase, before.reason) == (PodPhase.RUNNING, "")
    assert (after.phase, after.reason, after.message) == (PodPhase.FAILED, "DeadlineExceeded", "too long")
    assert (later.phase, later.reason) == (PodPhase.FAILED, "DeadlineExceeded")


def test_a_container_that_ends_to_be_made_anew_ends_no_pod() -> None:
    """Its spec changed; it starts again."""
    seen = observed(one("app", EXITED, 137))

    assert told(a_pod(restart_policy=NEVER), seen, changed={ContainerId("app-0")}).phase is PodPhase.RUNNING
    assert told(a_pod(restart_policy=NEVER), seen).phase is PodPhase.FAILED


def test_ephemeral_containers_have_statuses_and_decide_nothing() -> None:
    """A pod is ready without them."""
    pod = a_pod(ephemeral_containers=(a_container(name="debug"),))
    status = told(pod, observed(one("app", RUNNING), one("debug", EXITED, 1)))

    assert status.ready
    assert [c["name"] for c in to_kubernetes(status)["ephemeralContainerStatuses"]] == ["debug"]


@pytest.mark.parametrize("policy", list(RestartPolicy))
@pytest.mark.parametrize(("code", "phase"), [(0, PodPhase.SUCCEEDED), (143, PodPhase.FAILED)])
def test_a_pod_that_was_deleted_ends_whatever_its_restart_policy(
    policy: RestartPolicy, code: int, phase: PodPhase
) -> None:
    """Whoever counts ended pods waits for a phase that is final."""
    pod = a_pod(restart_policy=policy)
    before = told(pod, observed(one("app", RUNNING)))
    deleted = replace(pod, deletion_time=NOW)

    stopping = told(deleted, observed(one("app", RUNNING)), before)
    stopped = told(deleted, observed(one("app", EXITED, code)), stopping)

    assert stopping.phase is PodPhase.RUNNING
    assert stopped.phase is phase


def test_a_pod_that_was_deleted_before_it_ran_has_failed() -> None:
    """Nobody knows that it went well."""
    assert told(a_pod(deletion_time=NOW), observed(sandboxes=())).phase is PodPhase.FAILED
