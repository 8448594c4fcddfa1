"""The node as other tools see it: HTTP pages, gRPC on loopback, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tripod.kubelet.v1 import object_service_pb2 as pb
from tripod.kubelet.v1 import object_service_pb2_grpc as pb_grpc

from tests.e2e.conftest import ROOT, Node, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
POD = b"""
apiVersion: v1
kind: Pod
metadata: {name: e2e-tool}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: tripod-demo:1
      command: ["python3", "-u", "-c", "import signal; print('hello'); signal.pause()"]
"""


@pytest.fixture(scope="module")
def pod(node: Node) -> Iterator[str]:
    """Run a pod."""
    node.tripod("apply", "-f", "-", data=POD)
    node.tripod("wait", "pod/e2e-tool")
    yield "e2e-tool"
    node.tripod("delete", "pod/e2e-tool")


def page(place: str) -> bytes:
    """Get a page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{place}", timeout=10) as answer:
        data: bytes = answer.read()
        return data


def test_the_kubelet_lists_its_pods(pod: str) -> None:
    """As a PodList with status."""
    listed = json.loads(page("10255/pods"))

    found = next(item for item in listed["items"] if item["metadata"]["name"] == pod)
    assert (listed["kind"], found["status"]["phase"]) == ("PodList", "Running")


def test_the_summary_has_what_was_measured(node: Node, pod: str) -> None:
    """From cAdvisor, by way of the kubelet."""

    def measured() -> bool:
        pods = json.loads(page("10255/stats/summary"))["pods"]
        mine: dict[str, Any] = next((p for p in pods if p["podRef"]["name"] == pod), {})
        return mine.get("memory", {}).get("workingSetBytes", 0) > 1 << 20 and "network" in mine

    until(measured, "the pod is in the summary")


@pytest.mark.parametrize(
    "place", ["10255/metrics", "10255/metrics/cadvisor", "10249/metrics", "4194/metrics"]
)
def test_metrics_are_readable(node: Node, place: str) -> None:
    """By Prometheus's own parser."""
    assert len(list(text_string_to_metric_families(page(place).decode()))) > 2


def test_the_spec_is_the_machines(node: Node) -> None:
    """Cores and memory."""
    spec = json.loads(page("10255/spec"))

    assert spec["num_cores"] >= 1
    assert spec["memory_capacity"] > 1 << 28


def test_the_live_page_fetches_nothing_from_elsewhere(node: Node) -> None:
    """Its policy forbids it."""
    with urllib.request.urlopen("http://127.0.0.1:4194/", timeout=10) as answer:
        policy, body = answer.headers["Content-Security-Policy"], answer.read().decode()

    assert policy.startswith("default-src 'none'")
    assert "http://" not in body
    assert "https://" not in body


def test_another_host_name_is_refused(node: Node) -> None:
    """So that no web page can read the node by a name of its own."""
    request = urllib.request.Request("http://127.0.0.1:10255/pods", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)

    caught.value.close()
    assert caught.value.code == 421


def test_on_loopback_reading_needs_nothing_and_changing_the_token(node: Node, pod: str) -> None:
    """The token is the file that the kubelet made."""
    token = Path("/var/lib/tripod/node-token").read_text().strip()
    request = pb.DeleteObjectsRequest(refs=[pb.ObjectRef(kind="Pod", name="e2e-not-there")])
    with grpc.insecure_channel("127.0.0.1:50051") as channel:
        stub = pb_grpc.ObjectServiceStub(channel)
        listed = stub.ListObjects(pb.ListObjectsRequest(kind="Pod"), timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            stub.DeleteObjects(request, timeout=10)
        allowed = stub.DeleteObjects(request, timeout=10, metadata=(("authorization", f"Bearer {token}"),))

    assert pod in {json.loads(item)["metadata"]["name"] for item in listed.objects}
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert list(allowed.deleted_refs) == []


def tripod(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command line, whatever its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=ROOT,
        capture_output=True,
        input=data,
        check=False,
        timeout=60,
    )


def test_a_command_gets_its_input_and_gives_its_code(node: Node, pod: str) -> None:
    """Standard streams and exit code pass through every hop."""
    program = (
        "import sys; data = sys.stdin.read(); print(data.upper(), end=''); "
        "sys.stderr.write('oops'); sys.exit(7)"
    )
    done = tripod("exec", "-i", pod, "--", "python3", "-c", program, data=b"x" * 200_000)

    assert (done.returncode, done.stdout, done.stderr) == (7, b"X" * 200_000, b"oops")


def test_a_log_is_shown(node: Node, pod: str) -> None:
    """Its last line, too."""
    assert tripod("logs", pod).stdout == b"hello\n"
    assert tripod("logs", pod, "--tail", "0").stdout == b""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["get", "pod/e2e-nobody"], 4, b"does not exist"),
        (["get", "deployments"], 2, b"Unknown kind"),
        (["wait", "pod/e2e-nobody", "--timeout", "1s"], 3, b"is not known"),
        (["logs", "e2e-tool", "-c", "other"], 4, b"has no container 'other' (app)"),
        (["exec", "e2e-nobody", "--", "true"], 4, b"does not exist"),
        (["trace", "f" * 32], 4, b"No service remembers"),
    ],
)
def test_what_fails_says_why_and_has_its_exit_code(
    node: Node, pod: str, words: list[str], code: int, said: bytes
) -> None:
    """Scripts branch on the code, people read the line."""
    done = tripod(*words)

    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_the_container_has_the_same_command(node: Node, pod: str) -> None:
    """`docker-compose exec kubelet tripod` works where the host has none."""
    label = "label=com.docker.compose.service=kubelet"
    found = subprocess.check_output(["docker", "ps", "-q", "--filter", label], text=True).strip()
    said = subprocess.check_output(["docker", "exec", found, "tripod", "get", "pods"], text=True)

    assert pod in said
