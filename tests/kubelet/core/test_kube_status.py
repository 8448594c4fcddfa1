"""How a status is written for the API, and what is sent of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from services.kubelet.core import kube_status
from services.kubelet.core.model import PodUid
from services.kubelet.core.status import PodCondition, PodPhase, PodStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_status(phase: PodPhase = PodPhase.RUNNING, *, ready: bool = True, **values: Any) -> PodStatus:
    """Make a status."""
    conditions = (PodCondition("Ready", ready, "" if ready else "ContainersNotReady", since=NOW),)
    return PodStatus(
        PodUid("u"),
        "default",
        "web",
        phase,
        conditions=conditions,
        host_ip="192.0.2.1",
        observed_generation=2,
        **values,
    )


def test_only_what_differs_is_sent() -> None:
    """The UID is a precondition; what the API has already is left out, whatever empty things it adds."""
    first = kube_status.render(a_status(pod_ips=("10.0.0.1",)), {})
    stored = {
        **first,
        "qosClass": "Burstable",
        "conditions": [{**first["conditions"][0], "lastProbeTime": None}],
    }

    second = kube_status.render(a_status(pod_ips=("10.0.0.1",), ready=False), stored)
    patch = kube_status.patch("u", stored, second)

    assert patch is not None
    assert patch["metadata"] == {"uid": "u"}
    assert set(patch["status"]) == {"conditions"}
    assert patch["status"]["conditions"][0]["status"] == "False"
    assert kube_status.patch("u", stored, kube_status.render(a_status(pod_ips=("10.0.0.1",)), stored)) is None


def test_a_condition_keeps_its_time_over_a_restart() -> None:
    """A kubelet that starts again must not look like a change."""
    earlier = "2025-01-01T00:00:00Z"
    stored = {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": earlier}]}

    made = kube_status.render(a_status(), stored)

    assert made["conditions"][0]["lastTransitionTime"] == earlier


def test_what_a_condition_no_longer_says_is_taken_back() -> None:
    """A reason of before must not stay."""
    unready = kube_status.render(a_status(ready=False), {})

    patch = kube_status.patch("u", unready, kube_status.render(a_status(), unready))

    assert patch is not None
    assert patch["status"]["conditions"][0]["reason"] is None


def test_addresses_are_replaced_and_not_added() -> None:
    """The API merges them by their address: without a word an old one would stay."""
    before = kube_status.render(a_status(pod_ips=("10.0.0.1",)), {})

    patch = kube_status.patch("u", before, kube_status.render(a_status(pod_ips=("10.0.0.2",)), before))

    assert patch is not None
    assert patch["status"]["podIPs"] == [{"$patch": "replace"}, {"ip": "10.0.0.2"}]


def test_a_lost_address_is_taken_back() -> None:
    """A pod whose sandbox is gone has none."""
    before = kube_status.render(a_status(pod_ips=("10.0.0.1",)), {})

    patch = kube_status.patch("u", before, kube_status.render(a_status(), before))

    assert patch is not None
    assert (patch["status"]["podIP"], patch["status"]["podIPs"]) == (None, None)


def test_the_address_of_a_pod_that_has_ended_stays() -> None:
    """A kubelet whose record of it is lost does not know it any more."""
    before = kube_status.render(a_status(PodPhase.SUCCEEDED, pod_ips=("10.0.0.1",)), {})

    assert kube_status.patch("u", before, kube_status.render(a_status(PodPhase.SUCCEEDED), before)) is None


def test_a_pod_that_has_ended_stays_so() -> None:
    """A phase never goes back."""
    before = {"phase": "Succeeded"}

    assert kube_status.patch("u", before, kube_status.render(a_status(), before)) is None


def test_the_class_and_the_start_are_the_apis() -> None:
    """They do not change once they were told."""
    before = {"qosClass": "Guaranteed", "startTime": "2025-01-01T00:00:00Z"}

    made = kube_status.render(a_status(start_time=NOW), before)

    assert (made["qosClass"], made["startTime"]) == ("Guaranteed", "2025-01-01T00:00:00Z")


def test_a_refusal_says_why() -> None:
    """A pod that is not run has failed, with the reason."""
    made = kube_status.refusal("OutOfcpu", "Pod was rejected: no cpu", {}, generation=4, now=NOW)

    assert made == {
        "phase": "Failed",
        "reason": "OutOfcpu",
        "message": "Pod was rejected: no cpu",
        "startTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 4,
    }


def test_how_a_pod_has_ended_is_never_told_otherwise() -> None:
    """A kubelet that lost what it knew must not make a failure of a success."""
    stored = kube_status.render(a_status(PodPhase.SUCCEEDED), {})

    for phase in (PodPhase.RUNNING, PodPhase.FAILED):
        assert kube_status.patch("u", stored, kube_status.render(a_status(phase), stored)) is None
