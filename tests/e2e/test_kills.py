"""SIGKILL of any service: pods and connections live on, and it comes back to the same state."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Node, until
from tools.up import PORTS, fault

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ECHO = (
    "import socketserver\n"
    "class Echo(socketserver.StreamRequestHandler):\n"
    "    def handle(self):\n"
    "        for line in self.rfile: self.wfile.write(line)\n"
    "socketserver.ThreadingTCPServer(('', 7000), Echo).serve_forever()\n"
)


def manifest() -> bytes:
    """An echo server and its service."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "e2e-echo", "labels": {"app": "e2e-echo"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "echo",
                    "image": "tripod-demo:1",
                    "command": ["python3", "-c", ECHO],
                    "readinessProbe": {"tcpSocket": {"port": 7000}, "periodSeconds": 1},
                }
            ],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "e2e-echo"},
        "spec": {
            "selector": {"app": "e2e-echo"},
            "ports": [{"port": 7}],
        },
    }
    service["spec"]["ports"][0]["targetPort"] = 7000  # type: ignore[index]  # built right above
    return "\n---\n".join(map(json.dumps, (pod, service))).encode()


@pytest.fixture(scope="module")
def address(node: Node) -> Iterator[str]:
    """Run the echo server; give its service's address."""
    node.tripod("apply", "-f", "-", data=manifest())
    node.tripod("wait", "pod/e2e-echo", "--timeout", "60s")
    node.tripod("wait", "service/e2e-echo", "--for", "endpoints=1")
    yield str(node.object("service", "e2e-echo")["spec"]["clusterIP"])
    node.tripod("delete", "pod/e2e-echo", "svc/e2e-echo")


def say(connection: socket.socket, text: str) -> str:
    """Send a line and read it back."""
    connection.sendall(text.encode() + b"\n")
    return connection.makefile("r").readline().strip()


def rules() -> str:
    """Return our rules as the kernel lists them."""
    return subprocess.check_output(["nft", "list", "table", "ip", "tripod-proxy"], text=True)


def kill(node: Node, service: str) -> None:
    """Kill a service, once it ran long enough; return when another process runs in its place."""
    until(lambda: node.seconds_alive(node.pid(service)) > 11, f"{service} runs for ten seconds")
    pid = node.pid(service)
    os.kill(pid, signal.SIGKILL)
    until(lambda: node.pid(service) not in (0, pid), f"{service} starts again")


def containers(node: Node) -> dict[str, tuple[str, int]]:
    """Return each pod's container id and restart count."""
    listed = json.loads(node.tripod("get", "pods", "-o", "json"))["items"]
    statuses = {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0] for pod in listed}
    return {uid: (status["containerID"], status["restartCount"]) for uid, status in statuses.items()}


def answers(address: str) -> bool:
    """Connect anew and be answered; a refused connection is a failure of the test."""
    with socket.create_connection((address, 7), timeout=10) as fresh:
        return say(fresh, "meanwhile") == "meanwhile"


def healthy(service: str) -> None:
    """Wait until a service is healthy."""
    until(lambda: fault(PORTS[service]) == "", f"{service} is healthy: {fault(PORTS[service])}")


@pytest.mark.parametrize("service", ["kubelet", "proxy", "cadvisor"])
def test_a_killed_service_disturbs_nothing_and_comes_back(node: Node, address: str, service: str) -> None:
    """The same pods under the same ids, the same rules; an open connection never notices."""
    before, before_rules = containers(node), rules()
    with socket.create_connection((address, 7), timeout=10) as connection:
        assert say(connection, "before") == "before"
        kill(node, service)
        until(lambda: answers(address) and fault(PORTS[service]) == "", f"{service} is healthy again")
        assert say(connection, "after") == "after"

    until(lambda: answers(address) and containers(node) == before, "the pods are as before")
    assert rules() == before_rules
    if service == "cadvisor":
        page = urllib.request.urlopen("http://127.0.0.1:4194/metrics", timeout=5).read().decode()
        assert 'pod="e2e-echo"' in page


def test_a_pod_that_changes_while_the_proxy_is_away_is_caught_up(node: Node, address: str) -> None:
    """After its restart the proxy knows what it missed."""
    until(lambda: node.seconds_alive(node.pid("proxy")) > 11, "the proxy runs for ten seconds")
    os.kill(node.pid("proxy"), signal.SIGKILL)
    node.tripod("delete", "pod/e2e-echo")
    healthy("proxy")

    def refused() -> bool:
        try:
            socket.create_connection((address, 7), timeout=2).close()
        except OSError:
            return True
        return False

    until(refused, "the service refuses, since nothing stands behind it")
    node.tripod("apply", "-f", "-", data=manifest())
    node.tripod("wait", "service/e2e-echo", "--for", "endpoints=1")
    with socket.create_connection((address, 7), timeout=10) as connection:
        assert say(connection, "again") == "again"
