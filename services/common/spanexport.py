"""Hand spans to a collector, and count those that it never got.

A collector that is away, or accepts and never answers, costs spans: what waits is
bounded, what does not fit is dropped at once, and nobody but the exporter's own
thread ever waits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

_DEFAULT_QUEUE = 2048


class CountedExport(SpanProcessor):
    """Batches spans for one exporter. Safe to use from any thread."""

    def __init__(self, exporter: SpanExporter, *, delay_milliseconds: float) -> None:
        self._limit = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or _DEFAULT_QUEUE)
        self._lock = threading.Lock()
        self._waiting = 0
        self._dropped = 0
        self._batches = BatchSpanProcessor(
            _Counting(exporter, self._exported), schedule_delay_millis=delay_milliseconds
        )

    @property
    def dropped_count(self) -> int:
        """How many spans the collector never got."""
        return self._dropped

    @property
    def waiting_count(self) -> int:
        """How many spans wait, or are on their way."""
        return self._waiting

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Do nothing: only finished spans are sent."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a finished span that is sampled; drop it when the queue is full."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            if self._waiting >= self._limit:
                self._dropped += 1
                return
            self._waiting += 1
        self._batches.on_end(span)

    def _exported(self, count: int, *, well: bool) -> None:
        with self._lock:
            self._waiting -= count
            self._dropped += 0 if well else count

    def shutdown(self) -> None:
        """Send what waits; takes as long as the exporter does."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]  # the SDK types it not

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits now."""
        return self._batches.force_flush(timeout_millis)


class _Done(Protocol):
    def __call__(self, count: int, *, well: bool) -> None: ...


class _Counting(SpanExporter):
    """Tells how each batch went."""

    def __init__(self, exporter: SpanExporter, done: _Done) -> None:
        self._exporter = exporter
        self._done = done

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._done(len(spans), well=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """End the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)
