"""A pod's start as one trace, at a real OTLP receiver: a second node of plain processes sends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from cli.waterfall import Span, gap_share, orphans
from services.common import telemetry_names
from services.common.telemetry import episode_trace_id
from services.kubelet.cri.naming import OWNER_LABEL
from tests.e2e.conftest import ROOT, Node, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PODS = ("web-1", "web-2", "web-3")


class Receiver(otlp_grpc.TraceServiceServicer):
    """Keeps every span that arrives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Span]] = []

    def Export(self, request: Any, context: Any) -> Any:
        """Take spans."""
        with self._lock:
            for resource in request.resource_spans:
                values = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [(s.trace_id.hex(), _span(s, values["service.name"])) for s in scope.spans]
        return otlp.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[Span]:
        """Return one trace."""
        with self._lock:
            return [span for found, span in self._spans if found == trace_id]


def _span(span: Any, service: str) -> Span:
    return Span(
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        service=service,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
    )


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Receiver, int]]:
    """Serve OTLP on a free port."""
    made = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    otlp_grpc.add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]  # no types
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, port
    server.stop(None).wait()


class SecondNode:
    """The three services as processes, with names, ports and addresses of their own."""

    def __init__(self, folder: Path, otlp_port: int) -> None:
        mark = uuid.uuid4().hex[:5]
        self.mark = mark
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/gen",
            "TRIPOD_NODE_NAME": f"tt-{mark}",
            "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
            "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
            "TRIPOD_LISTEN": "127.0.0.1:0",
            "TRIPOD_HTTP_LISTEN": "127.0.0.1:0",
            "TRIPOD_BRIDGE": f"tt{mark}",
            "TRIPOD_VETH_PREFIX": f"t{mark[:3]}",
            "TRIPOD_CHAIN_PREFIX": f"TT{mark.upper()}",
            "TRIPOD_POD_CIDR": "10.203.77.0/24",
            "TRIPOD_SERVICE_CIDR": "10.204.0.0/16",
            "TRIPOD_TABLE": f"tt-{mark}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{otlp_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all three."""
        for service in ("kubelet", "proxy", "cadvisor"):
            words = [sys.executable, "-m", f"services.{service}"]
            with (self._folder / f"{service}.log").open("wb") as log:
                process = subprocess.Popen(words, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
            self._processes.append(process)
        until(lambda: self.tripod("get", "node").returncode == 0, "the second node answers")

    def tripod(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against this node."""
        return subprocess.run(
            [sys.executable, "-m", "cli", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def stop(self) -> None:
        """End the processes and remove all that they made."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(timeout=15)
        for service in ("kubelet", "proxy"):
            words = [sys.executable, "-m", f"services.{service}", "--cleanup"]
            subprocess.run(words, cwd=ROOT, env=self.environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def second(
    node: Node, receiver: tuple[Receiver, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecondNode]:
    """Run a second node and the examples on it. The first gives the images."""
    made = SecondNode(tmp_path_factory.mktemp("node"), receiver[1])
    made.start()
    try:
        applied = made.tripod("apply", "-f", str(ROOT / "examples"))
        assert applied.returncode == 0, applied.stderr
        waited = made.tripod("wait", *(f"pod/{name}" for name in PODS), "--timeout", "90s")
        assert waited.returncode == 0, waited.stderr
        assert made.tripod("wait", "service/web", "--for", "endpoints=3").returncode == 0
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("name", PODS)
def test_a_start_is_one_trace_without_gaps(
    second: SecondNode, receiver: tuple[Receiver, int], name: str
) -> None:
    """One trace id, three services, every parent there, the last span is the programmed endpoint."""
    listed = second.tripod("get", "pod", name, "-o", "json")
    uid = json.loads(listed.stdout)["metadata"]["uid"]

    trace_id = f"{episode_trace_id(uid, telemetry_names.POD_START, 0):032x}"
    trace = receiver[0].trace
    until(
        lambda: any(s.name == telemetry_names.ENDPOINTS_PROGRAM for s in trace(trace_id)),
        "the last span arrives",
    )
    until(lambda: any(s.name == telemetry_names.POD_START for s in trace(trace_id)), "the root arrives")
    until(lambda: not orphans(trace(trace_id)), "every parent arrives")
    spans = trace(trace_id)

    roots = [span for span in spans if not span.parent_id]
    assert [root.name for root in roots] == [telemetry_names.POD_START]
    assert {"tripod-kubelet", "tripod-cri", "tripod-proxy"} <= {span.service for span in spans}
    assert max(spans, key=lambda span: span.end_ns).name == telemetry_names.ENDPOINTS_PROGRAM
    assert gap_share(spans) < 0.05
    assert [span.name for span in spans if not telemetry_names.known(span.name)] == []


def test_the_terminal_shows_the_same_trace(second: SecondNode) -> None:
    """With no collector: the services remember."""
    shown = second.tripod("trace", "pod/web-1").stdout

    assert "endpoints.program" in shown
    assert "sandbox.create" in shown
    assert "parent that no service remembers" not in shown


def test_the_second_node_is_apart_from_the_first(node: Node, second: SecondNode) -> None:
    """Each sees only what carries its own mark."""
    words = ["docker", "ps", "-q", "--filter", f"label={OWNER_LABEL}=tt-{second.mark}"]
    assert len(subprocess.check_output(words, text=True).split()) == 8

    assert "10.203.77." not in node.tripod("get", "pods", "-A", "-o", "wide")
