"""Phases, conditions and container states."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.kubelet.core.model import HttpGet, Probe, RestartPolicy
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.core.status import (
    Circumstances,
    PodPhase,
    PodStatus,
    Waiting,
    compute_status,
    to_kubernetes,
)
from tests.builders import a_container, a_pod, a_sandbox, an_instance, observed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROBED = a_container(readiness_probe=Probe(HttpGet(80)))


def around(now: datetime = NOW, **values: object) -> Circumstances:
    """Make circumstances."""
    return Circumstances(**{"readiness": {}, "waiting": {}, "host_ip": "192.0.2.1", "now": now, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "seen", "phase"),
    [
        (RestartPolicy.ALWAYS, observed(sandboxes=()), PodPhase.PENDING),
        (RestartPolicy.ALWAYS, observed(), PodPhase.PENDING),
        (RestartPolicy.ALWAYS, observed(an_instance(RuntimeState.RUNNING)), PodPhase.RUNNING),
        (RestartPolicy.ALWAYS, observed(an_instance(RuntimeState.EXITED)), PodPhase.RUNNING),
        (RestartPolicy.NEVER, observed(an_instance(RuntimeState.EXITED)), PodPhase.SUCCEEDED),
        (RestartPolicy.NEVER, observed(an_instance(RuntimeState.EXITED, exit_code=1)), PodPhase.FAILED),
        (RestartPolicy.ON_FAILURE, observed(an_instance(RuntimeState.EXITED, exit_code=1)), PodPhase.RUNNING),
    ],
)
def test_a_phase_follows_from_containers_and_policy(
    policy: RestartPolicy, seen: ObservedPod, phase: PodPhase
) -> None:
    """As "Pod Lifecycle" says."""
    assert compute_status(a_pod(restart_policy=policy), seen, around(), None).phase is phase


def test_a_pod_with_a_readiness_probe_is_ready_when_it_says_so() -> None:
    """Running is not ready."""
    pod, seen = a_pod(PROBED), observed(an_instance(RuntimeState.RUNNING))

    before = compute_status(pod, seen, around(), None)
    after = compute_status(pod, seen, around(readiness={"app-0": True}), before)

    assert (before.ready, after.ready) == (False, True)


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    """`lastTransitionTime` tells since when."""
    pod, seen, later = a_pod(PROBED), observed(an_instance(RuntimeState.RUNNING)), NOW + timedelta(minutes=1)

    first = compute_status(pod, seen, around(), None)
    second = compute_status(pod, seen, around(later), first)
    third = compute_status(pod, seen, around(later, readiness={"app-0": True}), second)

    def since(status: PodStatus) -> datetime | None:
        return next(c.since for c in status.conditions if c.type == "Ready")

    assert [since(first), since(second), since(third)] == [NOW, NOW, later]


def test_a_container_in_back_off_waits_and_shows_how_it_ended() -> None:
    """The reason to wait, and the exit code behind it, are both told."""
    seen = observed(an_instance(RuntimeState.EXITED, 1, exit_code=3))
    waiting = {"app": Waiting("CrashLoopBackOff", "back-off 10s")}

    shown = to_kubernetes(compute_status(a_pod(), seen, around(waiting=waiting), None))["containerStatuses"][
        0
    ]

    assert shown["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    assert shown["lastState"]["terminated"]["exitCode"] == 3
    assert shown["restartCount"] == 1


def test_an_ended_pod_stays_ended() -> None:
    """A phase that is final does not turn back when containers are gone."""
    pod = a_pod(restart_policy=RestartPolicy.NEVER)
    ended = compute_status(pod, observed(an_instance(RuntimeState.EXITED)), around(), None)

    assert compute_status(pod, observed(sandboxes=()), around(), ended).phase is PodPhase.SUCCEEDED


def test_an_ended_pod_keeps_its_addresses() -> None:
    """Also after its sandbox has stopped. A pod that will start again has none meanwhile."""
    had = around(addresses=("10.0.0.2",))
    pod = a_pod(restart_policy=RestartPolicy.NEVER)
    ran = compute_status(pod, observed(an_instance(RuntimeState.RUNNING)), around(), None)
    stopped, exited = a_sandbox(ready=False), an_instance(RuntimeState.EXITED)

    ended = compute_status(pod, observed(exited, sandboxes=(stopped,)), had, ran)
    gone = compute_status(pod, observed(sandboxes=()), had, ended)
    again = compute_status(a_pod(), observed(sandboxes=(stopped,)), had, ran)

    assert ran.pod_ips
    assert (ended.pod_ips, gone.pod_ips, again.pod_ips) == (ran.pod_ips, ran.pod_ips, ())
