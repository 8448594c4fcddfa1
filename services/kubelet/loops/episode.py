"""The traces of pods: one trace for each start, restart and stop.

While an episode is open, what the worker does for its pod is recorded under it;
what it does outside one is not, since a look that finds nothing is no news.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span, Status, StatusCode

from services.common import telemetry, telemetry_names
from services.common.clock import Clock, unix_nanoseconds
from services.kubelet.core.model import Pod


class Episode:
    """One open trace of a pod."""

    def __init__(
        self, pod: Pod, name: str, attempt: int, clock: Clock, *, start_ns: int, cause: str = ""
    ) -> None:
        trace_id = telemetry.episode_trace_id(pod.uid, name, attempt)
        self.name = name
        self.trace_id = f"{trace_id:032x}"
        self._clock = clock
        self._wait: Span | None = None
        self._initializing = False
        self._root = telemetry.start_episode(
            name,
            trace_id=trace_id,
            attributes={
                "k8s.namespace.name": pod.namespace,
                "k8s.pod.name": pod.name,
                "k8s.pod.uid": pod.uid,
            },
            links=[cause],
            start_time_ns=start_ns,
        )
        self.parent = telemetry.traceparent(self._root)
        self._covered_ns = start_ns

    @property
    def waiting(self) -> bool:
        """Whether the episode waits for a probe."""
        return self._wait is not None

    def now_ns(self) -> int:
        """Return the wall time in nanoseconds."""
        return unix_nanoseconds(self._clock.now())

    def queued(self) -> None:
        """Record the time since the last recorded work as waiting for a worker."""
        if self._wait is None:
            telemetry.record_span(
                telemetry_names.WORKER_QUEUE,
                parent=self.parent,
                start_time_ns=self._covered_ns,
                end_time_ns=self.now_ns(),
            )
            self.covered()

    def received(self, seen_ns: int) -> None:
        """Record that the source took the pod in until `seen_ns`, from when it heard of it."""
        telemetry.record_span(
            telemetry_names.POD_RECEIVE,
            parent=self.parent,
            start_time_ns=self._covered_ns,
            end_time_ns=seen_ns,
        )
        self._covered_ns = seen_ns

    def looked(self) -> None:
        """Record the time since the last recorded work as a look, where a look went unrecorded."""
        if self._wait is None and self.now_ns() > self._covered_ns:
            telemetry.record_span(
                telemetry_names.POD_OBSERVE,
                parent=self.parent,
                start_time_ns=self._covered_ns,
                end_time_ns=self.now_ns(),
            )
            self.covered()

    def covered(self) -> None:
        """Note that everything until now has its span."""
        self._covered_ns = self.now_ns()

    def wait_for_probe(self) -> None:
        """Begin to wait for readiness."""
        if self._wait is None:
            self._wait = telemetry.start_span(telemetry_names.PROBE_READINESS_WAIT, parent=self.parent)

    def wait_for_init(self) -> None:
        """Begin to wait for an init container, until the next pass."""
        if self._wait is None:
            self._initializing = True
            self._wait = telemetry.start_span(telemetry_names.INIT_WAIT, parent=self.parent)

    def look(self) -> None:
        """Begin a pass, which ends a wait for an init container."""
        if self._initializing:
            self._initializing = False
            self.probe_answered()

    def probe_answered(self) -> None:
        """End the wait: a verdict moved. What follows is queueing again."""
        if self._wait is not None:
            self._wait.end()
            self._wait = None
            self.covered()

    def end(self, failure: str = "") -> None:
        """Close the trace's root."""
        if self._wait is not None:
            self._wait.end()
            self._wait = None
        if failure:
            self._root.set_status(Status(StatusCode.ERROR, failure))
        self._root.end()


@contextmanager
def recording(episode: Episode | None) -> Iterator[None]:
    """Run a block under an open episode, or unrecorded without one."""
    if episode is None:
        with telemetry.unrecorded():
            yield
    else:
        with telemetry.within(episode.parent):
            yield
