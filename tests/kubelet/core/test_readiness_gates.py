"""When a pod with readiness gates is ready."""

from __future__ import annotations

from datetime import UTC, datetime

from services.kubelet.core.observed import RuntimeState
from services.kubelet.core.status import Circumstances, PodStatus, compute_status
from tests.builders import a_pod, an_instance, observed

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def status_with(*met: str) -> PodStatus:
    """Compute the status of a running pod with two gates."""
    pod = a_pod(readiness_gates=("a", "b"), conditions_met=frozenset(met))
    around = Circumstances(readiness={}, waiting={}, host_ip="192.0.2.1", now=NOW)
    return compute_status(pod, observed(an_instance(RuntimeState.RUNNING)), around, None)


def test_a_pod_is_ready_when_every_gate_is_open() -> None:
    """Containers that are ready are not enough."""
    conditions = {c.type: c for c in status_with("a").conditions}

    assert status_with("a", "b").ready
    assert conditions["ContainersReady"].holds
    assert (conditions["Ready"].holds, conditions["Ready"].reason) == (False, "ReadinessGatesNotReady")
    assert '"b"' in conditions["Ready"].message
