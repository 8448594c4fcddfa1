"""Traces: chosen ids, propagation, the ring, and a collector that is away."""

from __future__ import annotations

import time

import pytest

from services.common import telemetry, telemetry_names


def test_an_episode_has_the_trace_id_that_was_chosen() -> None:
    """Whoever knows the pod knows the trace."""
    tracing = telemetry.setup("tripod-test")
    wanted = telemetry.episode_trace_id("uid", "start", 0)

    root = telemetry.start_episode(telemetry_names.POD_START, trace_id=wanted)
    with telemetry.span(telemetry_names.IMAGE_PULL, parent=telemetry.traceparent(root)):
        pass
    root.end()
    with telemetry.span(telemetry_names.IMAGE_PULL, parent=""):
        pass

    assert [span.name for span in tracing.ring.spans(wanted)] == ["image.pull", "pod.start"]
    assert len(tracing.ring.spans()) == 3


def test_the_ring_forgets_the_oldest() -> None:
    """Memory has a bound."""
    tracing = telemetry.setup("tripod-test", ring_capacity=3)

    for number in range(5):
        with telemetry.span("x", attributes={"number": number}):
            pass

    assert [dict(span.attributes or {})["number"] for span in tracing.ring.spans()] == [2, 3, 4]


def test_a_wait_can_be_recorded_afterwards() -> None:
    """A queue knows how long something waited only when it leaves."""
    tracing = telemetry.setup("tripod-test")

    telemetry.record_span("worker.queue", parent="", start_time_ns=1_000, end_time_ns=3_000)

    assert [(s.start_time, s.end_time) for s in tracing.ring.spans()] == [(1_000, 3_000)]


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01"])
def test_a_bad_parent_gives_a_root(parent: str) -> None:
    """A peer's mistake never costs a span."""
    tracing = telemetry.setup("tripod-test")

    with telemetry.span("x", parent=parent):
        pass

    assert tracing.ring.spans()[0].parent is None


def test_a_collector_that_is_away_costs_two_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shutting down never waits for a collector."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = telemetry.setup("tripod-test")
    with telemetry.span("x"):
        pass

    begin = time.monotonic()
    tracing.shutdown(timeout_seconds=2.0)

    assert tracing.exporting
    assert time.monotonic() - begin < 3.0


def test_no_endpoint_means_no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried, and nothing logged, when nobody asked for it."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")

    assert not telemetry.setup("tripod-test").exporting
