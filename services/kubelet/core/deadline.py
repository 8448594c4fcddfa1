"""Decide whether a pod's time is up. Pure.

Source: the kubelet's `active_deadline.go`: the time counts from the pod's start on this
node, in whole pods and over restarts of the kubelet.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from services.kubelet.core.memory import Over
from services.kubelet.core.model import Pod

_OVER = Over("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")


def left_seconds(pod: Pod, start: datetime | None, now: datetime) -> float | None:
    """Return how long a pod may still run; None for one without a deadline, or that has not begun."""
    limit = pod.spec.active_deadline_seconds
    if limit is None or start is None or pod.deletion_time is not None:
        return None
    return (start + timedelta(seconds=limit) - now).total_seconds()


def over(pod: Pod, start: datetime | None, now: datetime) -> Over | None:
    """Return why a pod has failed, once its time is up."""
    left = left_seconds(pod, start, now)
    return _OVER if left is not None and left <= 0 else None
