"""Gather what the kubelet knows of a pod, and explain it. Asks nothing of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from services.common.clock import Clock
from services.kubelet.core.events import Event
from services.kubelet.core.explain import Explanation, Facts, explain
from services.kubelet.core.model import ObjectKey, Pod
from services.kubelet.loops.prober import Prober
from services.kubelet.loops.sync import PodWorkers


@dataclass(frozen=True, slots=True)
class Faults:
    """Where the node's faults can be read; each returns "" or None for none.

    `manifests` are the refused files with their faults, `origin` the file of an object.
    """

    runtime: Callable[[], str | None]
    store: Callable[[], str | None]
    disk: Callable[[], str | None]
    manifests: Callable[[], Mapping[str, str]]
    origin: Callable[[ObjectKey], str]
    cluster: Callable[[], str | None] = lambda: None


class Explainer:
    """Explains the pods of one node."""

    def __init__(
        self,
        *,
        workers: PodWorkers,
        prober: Prober,
        events: Callable[[], Iterable[Event]],
        faults: Faults,
        clock: Clock,
    ) -> None:
        self._workers = workers
        self._prober = prober
        self._events = events
        self._faults = faults
        self._clock = clock

    def explain(self, pod: Pod) -> Explanation:
        """Explain a pod of the source as it is known now."""
        file = self._faults.origin(pod.key)
        refused = self._faults.manifests().get(file, "") if file else ""
        return explain(
            Facts(
                pod=pod,
                now=self._clock.now(),
                monotonic=self._clock.monotonic(),
                work=self._workers.work(pod.uid),
                probes=self._prober.reports(pod.uid),
                events=tuple(event for event in self._events() if event.pod_uid == pod.uid),
                runtime_fault=self._faults.runtime() or "",
                store_fault=self._faults.store() or "",
                disk_fault=self._faults.disk() or "",
                cluster_fault=self._faults.cluster() or "",
                manifest_fault=f"its file {file} was changed and is refused: {refused}" if refused else "",
            )
        )

    def refused(self) -> Mapping[str, str]:
        """Return the manifests that are refused, each with its fault."""
        return self._faults.manifests()
