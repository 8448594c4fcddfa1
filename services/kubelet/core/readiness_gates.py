"""Readiness gates: conditions that others must set before a pod is ready. Pure.

Source: KEP-580 "Pod Ready++"; the kubelet's `status/generate.go`.
"""

from __future__ import annotations

from services.kubelet.core.model import Pod

REASON = "ReadinessGatesNotReady"


def unmet(pod: Pod) -> str:
    """Say which gates do not hold; "" when all do."""
    missing = [gate for gate in pod.spec.readiness_gates if gate not in pod.conditions_met]
    return "; ".join(f'the status of pod readiness gate "{gate}" is not "True"' for gate in missing)
