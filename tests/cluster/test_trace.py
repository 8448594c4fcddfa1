"""A start in a cluster is one trace: from the watch event to the endpoints on each node that uses the pod."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tripod.trace.v1 import trace_service_pb2 as pb
from tripod.trace.v1 import trace_service_pb2_grpc as pb_grpc

from services.common import telemetry_names
from services.common.grpcclient import call, open_channel
from services.common.telemetry import episode_trace_id
from tests.cluster.objects import marks, pod, server, service
from tests.lab.cluster import Cluster, until

pytestmark = marks
_PROGRAM = telemetry_names.ENDPOINTS_PROGRAM


async def remembered(socket: Path, trace_id: str) -> list[pb.Span]:
    """Ask a service for the spans of a trace that it remembers."""
    channel = open_channel(f"unix://{socket}")
    try:
        stub = pb_grpc.TraceServiceStub(channel)
        answer = await call(stub.GetTrace, pb.GetTraceRequest(trace_id=trace_id), deadline_seconds=5.0)
    finally:
        await channel.close(None)
    return list(answer.spans)


def end(span: pb.Span) -> int:
    """Return when a span ended, in nanoseconds."""
    return int(span.end_time.ToNanoseconds())


def named(spans: Sequence[pb.Span], name: str) -> list[pb.Span]:
    """Return the spans of a name."""
    return [span for span in spans if span.name == name]


async def test_a_start_is_one_trace_over_the_nodes_that_use_the_pod(made: Cluster) -> None:
    """The pod runs on one node; its service is programmed on both."""
    wanted = pod("traced", node="a", labels={"app": "traced"})
    wanted["spec"]["containers"] = [server()]
    await made.apply(service("traced"), wanted)
    await made.ready("traced")
    uid = (await made.pod("traced"))["metadata"]["uid"]
    trace_id = f"{episode_trace_id(uid, telemetry_names.POD_START, 0):032x}"
    own, other = made.nodes["a"].folder / "run", made.nodes["b"].folder / "run"

    async def complete() -> bool:
        ended = named(await remembered(own / "kubelet.sock", trace_id), telemetry_names.POD_START)
        here = named(await remembered(own / "proxy.sock", trace_id), _PROGRAM)
        there = named(await remembered(other / "proxy.sock", trace_id), _PROGRAM)
        return bool(ended and here and there)

    await until(complete, f"the trace is whole\n{made.logs()}", 30)
    kubelet = await remembered(own / "kubelet.sock", trace_id)
    here = await remembered(own / "proxy.sock", trace_id)
    there = await remembered(other / "proxy.sock", trace_id)

    ids = {span.span_id for span in kubelet + here}
    assert [s.name for s in kubelet + here if s.parent_span_id and s.parent_span_id not in ids] == []
    assert [s.name for s in kubelet + here if not s.parent_span_id] == [telemetry_names.POD_START]
    receipt, sandbox = (
        named(kubelet, name)[0] for name in (telemetry_names.POD_RECEIVE, telemetry_names.SANDBOX_CREATE)
    )
    first = min(kubelet, key=lambda span: int(span.start_time.ToNanoseconds()))
    assert first.name in (telemetry_names.POD_START, telemetry_names.POD_RECEIVE)
    assert end(receipt) <= end(sandbox)
    assert {span.service_name for span in kubelet} >= {"tripod-kubelet", "tripod-cri"}
    for program in (named(here, _PROGRAM)[0], named(there, _PROGRAM)[0]):
        assert program.service_name == "tripod-proxy"
        assert program.attributes["k8s.pod.name"] == "traced"
        assert end(program) >= end(sandbox)
    await made.delete("service/traced", "pod/traced")
