"""Serve this process's finished spans (`tripod.trace.v1.TraceService`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from tripod.trace.v1 import trace_service_pb2 as pb
from tripod.trace.v1 import trace_service_pb2_grpc as pb_grpc

from services.common.errors import Code, FieldViolation, TripodError
from services.common.grpcserver import Servicer
from services.common.telemetry import VERSION, SpanRing

_KINDS = {
    SpanKind.INTERNAL: pb.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: pb.SPAN_KIND_SERVER,
    SpanKind.CLIENT: pb.SPAN_KIND_CLIENT,
}
_DEFAULT_LIMIT = 50
_GREATEST_LIMIT = 1000


def servicer(ring: SpanRing) -> Servicer:
    """Make the service over one ring."""
    name = pb.DESCRIPTOR.services_by_name["TraceService"].full_name
    return Servicer(
        name, lambda server: pb_grpc.add_TraceServiceServicer_to_server(TraceServicer(ring), server)
    )


class TraceServicer(pb_grpc.TraceServiceServicer):
    """Answers from the ring."""

    def __init__(self, ring: SpanRing) -> None:
        self._ring = ring

    async def GetTrace(self, request: pb.GetTraceRequest, context: Any) -> pb.GetTraceResponse:
        """Return the spans of one trace by their start."""
        spans = sorted(self._ring.spans(_parse(request.trace_id)), key=lambda span: span.start_time or 0)
        return pb.GetTraceResponse(spans=[_span(span) for span in spans])

    async def ListTraces(self, request: pb.ListTracesRequest, context: Any) -> pb.ListTracesResponse:
        """Return the latest traces."""
        if not 0 <= request.limit <= _GREATEST_LIMIT:
            raise _invalid("limit", f"must be 0 to {_GREATEST_LIMIT}")
        by_trace: dict[int, list[ReadableSpan]] = {}
        for span in self._ring.spans():
            by_trace.setdefault(_ids(span)[0], []).append(span)
        latest = sorted(by_trace.values(), key=lambda spans: spans[-1].end_time or 0, reverse=True)
        wanted = latest[: request.limit or _DEFAULT_LIMIT]
        return pb.ListTracesResponse(traces=[_summary(spans) for spans in wanted], service_version=VERSION)


def _parse(text: str) -> int:
    try:
        if len(text) == 32:
            return int(text, 16)
    except ValueError:
        pass
    raise _invalid("trace_id", f"{text!r} is not 32 hex digits")


def _invalid(field: str, what: str) -> TripodError:
    return TripodError(
        f"{field}: {what}",
        code=Code.INVALID_ARGUMENT,
        reason="REQUEST_INVALID",
        violations=[FieldViolation(field, what)],
    )


def _ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    return (context.trace_id, context.span_id) if context else (0, 0)


def _text(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: str(value) for key, value in (attributes or {}).items()}


def _span(span: ReadableSpan) -> pb.Span:
    trace_id, span_id = _ids(span)
    message = pb.Span(
        trace_id=f"{trace_id:032x}",
        span_id=f"{span_id:016x}",
        parent_span_id=f"{span.parent.span_id:016x}" if span.parent else "",
        name=span.name,
        kind=_KINDS.get(span.kind, pb.SPAN_KIND_UNSPECIFIED),
        service_name=str(span.resource.attributes.get("service.name", "")),
        attributes=_text(span.attributes),
        failed=span.status.status_code is StatusCode.ERROR,
        status_message=span.status.description or "",
        links=[
            pb.SpanLink(trace_id=f"{link.context.trace_id:032x}", span_id=f"{link.context.span_id:016x}")
            for link in span.links
        ],
    )
    message.start_time.FromNanoseconds(span.start_time or 0)
    message.end_time.FromNanoseconds(span.end_time or 0)
    for event in span.events[:128]:
        item = message.events.add(name=event.name, attributes=_text(event.attributes))
        item.time.FromNanoseconds(event.timestamp)
    return message


def _summary(spans: list[ReadableSpan]) -> pb.TraceSummary:
    first = min(spans, key=lambda span: span.start_time or 0)
    message = pb.TraceSummary(
        trace_id=f"{_ids(first)[0]:032x}",
        name=first.name,
        span_count=len(spans),
        attributes=_text(first.attributes),
    )
    message.start_time.FromNanoseconds(first.start_time or 0)
    message.end_time.FromNanoseconds(max(span.end_time or 0 for span in spans))
    return message
