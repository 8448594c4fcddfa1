"""How probes fare, under the original's names.

Source: kubernetes pkg/kubelet/prober/prober_manager.go `ProberResults`, `ProberDuration`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from services.common.clock import Clock
from services.kubelet.core.measures import Counter, Histogram, Measure
from services.kubelet.core.model import Container, Probe
from services.kubelet.ports import ProbeOutcome, ProbeRunner, ProbeTarget

_TARGET: Final = ("container", "namespace", "pod")


class MeasuredProbeRunner:
    """Counts the probes that another runs. Implements `ProbeRunner`."""

    def __init__(self, runner: ProbeRunner, clock: Clock) -> None:
        self._runner = runner
        self._clock = clock
        labels = (*_TARGET, "pod_uid", "probe_type", "result")
        self._results = Counter("prober_probe_total", "Probes that ended, by result.", labels)
        self._seconds = Histogram(
            "prober_probe_duration_seconds", "How long probes took.", (*_TARGET, "probe_type")
        )

    async def run(self, probe: Probe, target: ProbeTarget) -> ProbeOutcome | None:
        """Run one probe as the other does."""
        begin = self._clock.monotonic()
        outcome = await self._runner.run(probe, target)
        pod, kind = target.pod, _kind(probe, target.container)
        names = (target.container.name, pod.namespace, pod.name)
        self._results.add(*names, pod.uid, kind, _result(outcome))
        if outcome is not None and outcome.success:
            self._seconds.observe(self._clock.monotonic() - begin, *names, kind)
        return outcome

    def measures(self, pods: Set[tuple[str, str]]) -> tuple[Measure, ...]:
        """Return what was counted of pods, by namespace and name, and forget all others."""
        self._results.forget(lambda key: (key[1], key[2]) in pods)
        self._seconds.forget(lambda key: (key[1], key[2]) in pods)
        return self._results, self._seconds


def _kind(probe: Probe, container: Container) -> str:
    if probe is container.liveness_probe:
        return "Liveness"
    return "Startup" if probe is container.startup_probe else "Readiness"


def _result(outcome: ProbeOutcome | None) -> str:
    if outcome is None:
        return "unknown"
    return "successful" if outcome.success else "failed"
