"""How the runtime's calls fare, under the original's names.

Source: kubernetes pkg/kubelet/metrics/metrics.go, kuberuntime/instrumented_services.go.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.common.errors import TripodError
from services.kubelet.core.measures import Counter, Histogram, Measure

# From 5 ms on, each two and a half times the one before.
_BUCKETS: Final = tuple(round(0.005 * 2.5**step, 9) for step in range(14))
_TYPE: Final = ("operation_type",)


def operation_type(request: str) -> str:
    """Name an operation after its request as the original does: `run_podsandbox`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", request.removesuffix("Request")).lower()
    return words.replace("pod_sandbox", "podsandbox")


class RuntimeMeasures:
    """Counts the calls of one client."""

    def __init__(self) -> None:
        prefix = "kubelet_runtime_operations"
        self._total = Counter(f"{prefix}_total", "Calls of the runtime.", _TYPE)
        self._errors = Counter(f"{prefix}_errors_total", "Calls of the runtime that failed.", _TYPE)
        self._seconds = Histogram(
            f"{prefix}_duration_seconds", "How long calls of the runtime took.", _TYPE, _BUCKETS
        )
        self._sandbox_seconds = Histogram(
            "kubelet_run_podsandbox_duration_seconds",
            "How long the making of sandboxes took.",
            ("runtime_handler",),
            _BUCKETS,
        )
        self._sandbox_errors = Counter(
            "kubelet_run_podsandbox_errors_total", "Sandboxes that were not made.", ("runtime_handler",)
        )
        self._started_pods = Counter("kubelet_started_pods_total", "Sandboxes that were asked for.")
        self._started_containers = Counter(
            "kubelet_started_containers_total", "Containers whose start was asked for."
        )
        self._container_errors = Counter(
            "kubelet_started_containers_errors_total", "Containers that were not started."
        )

    def all(self) -> tuple[Measure, ...]:
        """Return what was counted."""
        return (
            *(self._total, self._errors, self._seconds, self._sandbox_seconds, self._sandbox_errors),
            *(self._started_pods, self._started_containers, self._container_errors),
        )

    @contextmanager
    def operation(self, request: str) -> Iterator[None]:
        """Count a call, named after its request's type."""
        kind, begin = operation_type(request), time.monotonic()
        self._total.add(kind)
        try:
            yield
        except TripodError:
            self._errors.add(kind)
            self._failed(kind)
            raise
        finally:
            self._ended(kind, time.monotonic() - begin)

    def _failed(self, kind: str) -> None:
        if kind == "run_podsandbox":
            self._sandbox_errors.add("")
        if kind == "start_container":
            self._container_errors.add()

    def _ended(self, kind: str, seconds: float) -> None:
        self._seconds.observe(seconds, kind)
        if kind == "run_podsandbox":
            self._sandbox_seconds.observe(seconds, "")
            self._started_pods.add()
        if kind == "start_container":
            self._started_containers.add()
