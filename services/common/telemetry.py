"""Traces: set-up, a ring of finished spans, and W3C propagation by plain strings.

The ring lets `tripod trace` draw a waterfall with no collector. Spans also go to
an OTLP collector when an `OTEL_EXPORTER_OTLP_*ENDPOINT` variable is set; all
`OTEL_*` variables of the SDK are obeyed. A collector that is away costs spans,
never latency, and at most two seconds of shutdown.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.logs import get_logger

if TYPE_CHECKING:
    from services.common.spanexport import CountedExport

AttributeValue = str | int | float | bool
Attributes = Mapping[str, AttributeValue]
VERSION = "0.1.0"

_propagator = TraceContextTextMapPropagator()
_chosen_trace_id: ContextVar[int | None] = ContextVar("chosen_trace_id", default=None)
_tracer = trace.get_tracer("tripod")
_export: CountedExport | None = None
log = get_logger(__name__)
# A part of the process that shows as a service of its own sets this for what it serves.
_part_tracer: ContextVar[trace.Tracer | None] = ContextVar("part_tracer", default=None)


class SpanRing(SpanProcessor):
    """Remembers the last `capacity` finished spans. Safe to use from any thread."""

    def __init__(self, capacity: int) -> None:
        self._spans: deque[ReadableSpan] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Do nothing: only finished spans are remembered."""

    def on_end(self, span: ReadableSpan) -> None:
        """Remember a finished span."""
        with self._lock:
            self._spans.append(span)

    def spans(self, trace_id: int | None = None) -> list[ReadableSpan]:
        """Return remembered spans, oldest end first, of one trace or of all."""
        with self._lock:
            listed = list(self._spans)
        return [span for span in listed if trace_id is None or _trace_id(span) == trace_id]

    def shutdown(self) -> None:
        """Do nothing: nothing is buffered."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: nothing is buffered."""
        return True


def _trace_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return context.trace_id if context else 0


class _ChosenIds(IdGenerator):
    """Gives a root span the trace id that `start_episode` chose, all others random ids."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()

    def generate_span_id(self) -> int:
        return self._random.generate_span_id()

    def generate_trace_id(self) -> int:
        return _chosen_trace_id.get() or self._random.generate_trace_id()


class Telemetry:
    """The tracing of one process. Made once by `setup`; ended by `shutdown`."""

    def __init__(
        self,
        provider: TracerProvider,
        processors: Sequence[SpanProcessor],
        ring: SpanRing,
        export: CountedExport | None,
    ) -> None:
        self.ring = ring
        self.exporting = export is not None
        self._provider = provider
        self._processors = processors
        self._export = export

    def part(self, service_name: str, *, node_name: str = "") -> trace.Tracer:
        """Return a tracer for a part of this process that shows as a service of its own."""
        provider = TracerProvider(id_generator=_ChosenIds(), resource=_resource(service_name, node_name))
        for processor in self._processors:
            provider.add_span_processor(processor)
        return provider.get_tracer("tripod", VERSION)

    def shutdown(self, timeout_seconds: float = 2.0) -> None:
        """Flush what the exporter holds, for `timeout_seconds` at most; the rest is dropped."""
        worker = threading.Thread(target=self._provider.shutdown, name="telemetry-shutdown", daemon=True)
        worker.start()
        worker.join(timeout_seconds)
        if self._export is not None and (lost := self._export.dropped_count + self._export.waiting_count):
            log.warning("Dropped spans that the collector did not take", span_count=lost)


def setup(service_name: str, *, ring_capacity: int = 4_000, node_name: str = "") -> Telemetry:
    """Start tracing in this process.

    `service_name` is `tripod-kubelet` and the like; `OTEL_SERVICE_NAME` overrides it.
    """
    global _tracer, _export
    name = os.environ.get("OTEL_SERVICE_NAME") or service_name
    ring = SpanRing(ring_capacity)
    provider = TracerProvider(id_generator=_ChosenIds(), resource=_resource(name, node_name))
    _export = _exporter() if _export_wanted() else None
    processors: list[SpanProcessor] = [ring, *([_export] if _export else [])]
    for processor in processors:
        provider.add_span_processor(processor)
    _tracer = provider.get_tracer("tripod", VERSION)
    return Telemetry(provider, processors, ring, _export)


def _resource(name: str, node_name: str) -> Resource:
    values = {
        "service.name": name,
        "service.namespace": "tripod",
        "service.version": VERSION,
        "service.instance.id": str(uuid.uuid4()),
        "host.name": os.uname().nodename,
    }
    if node_name:
        values["k8s.node.name"] = node_name
    return Resource.create(values)


def _export_wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") not in ("otlp", ""):
        return False
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    return bool(endpoint)


def dropped_spans() -> int:
    """Return how many spans of this process the collector never got."""
    return _export.dropped_count if _export else 0


def _exporter() -> CountedExport:
    # Imported here: it costs 35 MB and half a second.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    from services.common.spanexport import CountedExport

    timeout = float(os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") or 2)
    delay = float(os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or 1000)
    return CountedExport(OTLPSpanExporter(timeout=timeout), delay_milliseconds=delay)


@contextmanager
def served_by(tracer: trace.Tracer | None) -> Iterator[None]:
    """Run a block whose spans belong to another service's tracer; None changes nothing."""
    token = _part_tracer.set(tracer or _part_tracer.get())
    try:
        yield
    finally:
        _part_tracer.reset(token)


def traceparent(span: Span | None = None) -> str:
    """Return the W3C `traceparent` of a span, or of the current one; empty when there is none."""
    carrier: dict[str, str] = {}
    context = trace.set_span_in_context(span) if span is not None else None
    _propagator.inject(carrier, context=context)
    return carrier.get("traceparent", "")


def context_of(parent: str) -> Context:
    """Return a context with `parent` (a `traceparent`) as its remote span; a bad one gives a root."""
    return _propagator.extract({"traceparent": parent}, context=Context())


def _links(parents: Sequence[str]) -> list[Link]:
    contexts = [trace.get_current_span(context_of(parent)).get_span_context() for parent in parents if parent]
    return [Link(context) for context in contexts if context.is_valid]


def start_span(
    name: str,
    *,
    parent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    links: Sequence[str] = (),
    start_time_ns: int | None = None,
) -> Span:
    """Begin a span that the caller ends.

    `parent` is a `traceparent`; None means the current span, an empty string a new root.
    """
    context = None if parent is None else context_of(parent)
    return (_part_tracer.get() or _tracer).start_span(
        name, context=context, kind=kind, attributes=attributes, links=_links(links), start_time=start_time_ns
    )


@contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    links: Sequence[str] = (),
    start_time_ns: int | None = None,
) -> Iterator[Span]:
    """Run a block within a span. An exception marks it failed and passes on."""
    opened = start_span(
        name, parent=parent, kind=kind, attributes=attributes, links=links, start_time_ns=start_time_ns
    )
    with trace.use_span(opened, end_on_exit=True, record_exception=False):
        yield opened


@contextmanager
def within(parent: str) -> Iterator[None]:
    """Run a block with `parent` (a `traceparent`) as the current span, without making one."""
    token = otel_context.attach(context_of(parent))
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Run a block whose spans nobody keeps, here or at a peer: for looking when nothing happens."""
    context = SpanContext(
        trace_id=RandomIdGenerator().generate_trace_id(),
        span_id=RandomIdGenerator().generate_span_id(),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.DEFAULT),
    )
    token = otel_context.attach(trace.set_span_in_context(NonRecordingSpan(context), Context()))
    try:
        yield
    finally:
        otel_context.detach(token)


def start_episode(
    name: str,
    *,
    trace_id: int,
    attributes: Attributes | None = None,
    links: Sequence[str] = (),
    start_time_ns: int | None = None,
) -> Span:
    """Begin the root span of a trace whose id is chosen. The caller ends it."""
    token = _chosen_trace_id.set(trace_id)
    try:
        return start_span(name, parent="", attributes=attributes, links=links, start_time_ns=start_time_ns)
    finally:
        _chosen_trace_id.reset(token)


def record_span(
    name: str,
    *,
    parent: str,
    start_time_ns: int,
    end_time_ns: int,
    attributes: Attributes | None = None,
) -> str:
    """Record a span after the fact, such as a wait in a queue. Returns its `traceparent`."""
    made = start_span(name, parent=parent, attributes=attributes, start_time_ns=start_time_ns)
    made.end(end_time=max(start_time_ns, end_time_ns))
    return traceparent(made)


def episode_trace_id(subject: str, episode: str, attempt: int) -> int:
    """Derive the trace id of an episode: 128 bits of blake2b, never zero."""
    digest = hashlib.blake2b(f"{subject}/{episode}/{attempt}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") or 1
