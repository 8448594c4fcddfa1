"""Gather a trace from the three services."""

from __future__ import annotations

from typing import Any

import grpc

from cli.errors import CliError, Exit
from cli.node import DEADLINE_SECONDS, Node
from cli.waterfall import Span

SERVICES = ("kubelet", "proxy", "cadvisor")


def trace_of_pod(node: Node, namespace: str, name: str) -> str:
    """Return the trace id of a pod's latest start. Raises `CliError` when there is none."""
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    listed = node.pods().ListPods(pb.ListPodsRequest(namespace=namespace), timeout=DEADLINE_SECONDS)
    pod = next((p for p in listed.pods if p.name == name), None)
    if pod is None:
        raise CliError(f"pod/{name} does not exist in namespace {namespace}", code=Exit.NOT_FOUND)
    if not pod.trace_id:
        raise CliError(
            f"pod/{name} has no trace of its start: it ran before this kubelet started", code=Exit.NOT_FOUND
        )
    return str(pod.trace_id)


def collect(node: Node, trace_id: str) -> tuple[list[Span], list[str]]:
    """Return the spans that the services remember, and which services did not answer."""
    from tripod.trace.v1 import trace_service_pb2 as pb

    spans: dict[str, Span] = {}
    silent = []
    for service in SERVICES:
        try:
            answer = node.traces(service).GetTrace(pb.GetTraceRequest(trace_id=trace_id), timeout=5)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            silent.append(service)
            continue
        spans |= {span.span_id: _span(span) for span in answer.spans}
    return list(spans.values()), silent


def _span(span: Any) -> Span:
    return Span(
        span_id=span.span_id,
        parent_id=span.parent_span_id,
        name=span.name,
        service=span.service_name.removeprefix("tripod-"),
        start_ns=span.start_time.ToNanoseconds(),
        end_ns=span.end_time.ToNanoseconds(),
        failed=span.failed,
        message=span.status_message,
        attributes=dict(span.attributes),
        events=tuple((event.time.ToNanoseconds(), event.name) for event in span.events),
    )


def latest(node: Node, limit: int) -> list[tuple[str, str, str, int, int]]:
    """List the latest traces: id, name, pod, duration in nanoseconds, spans."""
    from tripod.trace.v1 import trace_service_pb2 as pb

    found: dict[str, list[Any]] = {}
    for service in SERVICES:
        try:
            answer = node.traces(service).ListTraces(pb.ListTracesRequest(limit=limit), timeout=5)
        except grpc.RpcError:
            continue
        for item in answer.traces:
            found.setdefault(item.trace_id, []).append(item)
    rows = []
    for trace_id, items in found.items():
        first = min(items, key=lambda i: int(i.start_time.ToNanoseconds()))
        end = max(i.end_time.ToNanoseconds() for i in items)
        start = first.start_time.ToNanoseconds()
        rows.append(
            (
                trace_id,
                first.name,
                first.attributes.get("k8s.pod.name", "-"),
                start,
                end - start,
                sum(i.span_count for i in items),
            )
        )
    rows.sort(key=lambda row: row[3], reverse=True)
    return [(r[0], r[1], r[2], r[4], r[5]) for r in rows[:limit]]
