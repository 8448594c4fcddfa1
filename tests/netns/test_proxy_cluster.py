"""Two nodes of a cluster as network namespaces on one wire: real packets, routes, and an API server.

Each node has pods on a bridge and a proxy process; a client stands outside. What a pod answers
is its name and the address that it saw, which tells who was masqueraded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.netns
VIP = "10.202.0.9"
NODES = {"a": "192.0.2.1", "b": "192.0.2.2"}
CLIENT = "192.0.2.9"
PODS = {"a2": "10.77.0.2", "a3": "10.77.0.3", "b2": "10.77.1.2"}
ANSWER = """
import socket, sys, threading
name = sys.argv[1].encode()
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 53))
    while True:
        _, peer = s.recvfrom(100); s.sendto(name + b"/" + peer[0].encode(), peer)
threading.Thread(target=udp, daemon=True).start()
s = socket.create_server(("", 8080), backlog=100); print("ready", flush=True)
def keep(c, peer):
    with c:
        c.sendall(name + b"/" + peer[0].encode())
        while data := c.recv(100): c.sendall(data)
while True:
    threading.Thread(target=keep, args=s.accept(), daemon=True).start()
"""
ASK = """
import socket, sys
kind, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for _ in range(count):
    try:
        if kind == "tcp":
            with socket.create_connection((host, port), timeout=1) as c: print(c.recv(100).decode())
        else:
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1); s.connect((host, port))
            s.send(b"x"); print(s.recv(100).decode()); s.close()
    except OSError as error: print(type(error).__name__)
"""


def shell(text: str) -> None:
    """Run commands, each of which must succeed."""
    done = subprocess.run(["sh", "-ec", textwrap.dedent(text)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def eventually(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.1)


@dataclass
class Lab:
    """The namespaces by name, and the drivers of the two nodes."""

    mark: str
    folder: Path
    drivers: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def space(self, name: str) -> str:
        """Return the name of a namespace."""
        return f"tc{self.mark}{name}"

    def run(self, where: str, *words: str) -> str:
        """Run a program in a namespace."""
        command = ["ip", "netns", "exec", self.space(where), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(
        self, where: str, host: str, port: int = 80, count: int = 1, *, kind: str = "tcp"
    ) -> Counter[str]:
        """Ask over fresh connections; count the answers."""
        return Counter(self.run(where, sys.executable, "-c", ASK, kind, host, str(port), str(count)).split())

    def names(self, where: str, host: str, port: int = 80, count: int = 24) -> set[str]:
        """Return who answers."""
        return {answer.partition("/")[0] for answer in self.ask(where, host, port, count)}

    def seen(self, where: str, host: str, port: int = 80) -> set[str]:
        """Return which addresses were seen by who answered."""
        return {answer.partition("/")[2] for answer in self.ask(where, host, port, 12)}

    def tell(self, command: dict[str, Any], *, nodes: str = "ab") -> None:
        """Send a command to the drivers of nodes, and wait until each has obeyed."""
        for name in nodes:
            driver = self.drivers[name]
            assert driver.stdin is not None
            assert driver.stdout is not None
            driver.stdin.write(json.dumps(command) + "\n")
            driver.stdin.flush()
            assert driver.stdout.readline() == "done\n", self.log(name)

    def put(self, resource: str, value: dict[str, Any]) -> None:
        """Create or replace an object at both API servers."""
        self.tell({"put": [resource, value]})

    def log(self, name: str) -> str:
        """Return what a node's proxy has logged."""
        return (self.folder / name / "proxy.log").read_text()[-3000:]

    def routes(self, node: str) -> str:
        """List a node's routes of ours."""
        return self.run(node, "ip", "route", "show", "proto", "84")


def a_node(name: str, number: int, address: str) -> dict[str, Any]:
    """Make a node."""
    return {
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": f"zone-{name}"}},
        "spec": {"podCIDRs": [f"10.77.{number}.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def a_service(name: str = "web", address: str = VIP, **spec: Any) -> dict[str, Any]:
    """Make a service with a TCP and a UDP port."""
    ports = [
        {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    return {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {"type": "NodePort", "clusterIP": address, "ports": ports, **spec},
    }


def a_slice(*pods: str, service: str = "web") -> dict[str, Any]:
    """Make the slice of a service over some pods."""
    return {
        "metadata": {
            "name": f"{service}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 8080},
            {"name": "dns", "protocol": "UDP", "port": 53},
        ],
        "endpoints": [
            {
                "addresses": [PODS[pod]],
                "conditions": {"ready": True},
                "nodeName": pod[0],
                "targetRef": {"kind": "Pod", "uid": f"uid-{pod}", "name": pod},
            }
            for pod in pods
        ],
    }


def _wire(lab: Lab, stack: ExitStack) -> None:
    """Make the namespaces: a wire with both nodes and the client, and each node's pods."""
    for name in ("lan", "a", "b", "client", *PODS):
        shell(f"ip netns add {lab.space(name)}; ip -n {lab.space(name)} link set lo up")
        stack.callback(shell, f"ip netns del {lab.space(name)}")
    shell(f"ip -n {lab.space('lan')} link add br0 type bridge; ip -n {lab.space('lan')} link set br0 up")
    for name, address in (*NODES.items(), ("client", CLIENT)):
        shell(f"""
            ip -n {lab.space("lan")} link add w-{name} type veth peer name eth0 netns {lab.space(name)}
            ip -n {lab.space("lan")} link set w-{name} master br0 up
            ip -n {lab.space(name)} addr add {address}/24 dev eth0; ip -n {lab.space(name)} link set eth0 up
        """)
    shell(f"ip -n {lab.space('client')} route add 10.202.0.0/16 via {NODES['a']}")
    for number, node in enumerate(NODES):
        shell(f"""
            ip netns exec {lab.space(node)} sysctl -qw net.ipv4.ip_forward=1
            ip -n {lab.space(node)} link add br0 type bridge
            ip -n {lab.space(node)} addr add 10.77.{number}.1/24 dev br0
            ip -n {lab.space(node)} link set br0 up
            ip -n {lab.space(node)} route add 10.202.0.0/16 dev eth0
        """)
    for pod, address in PODS.items():
        node = lab.space(pod[0])
        shell(f"""
            ip -n {node} link add w-{pod} type veth peer name eth0 netns {lab.space(pod)}
            ip -n {node} link set w-{pod} master br0 up
            ip netns exec {node} bridge link set dev w-{pod} hairpin on
            ip -n {lab.space(pod)} addr add {address}/24 dev eth0; ip -n {lab.space(pod)} link set eth0 up
            ip -n {lab.space(pod)} route add default via {address.rpartition(".")[0]}.1
        """)
        _start(stack, lab, pod, [sys.executable, "-c", ANSWER, pod])


def _start(stack: ExitStack, lab: Lab, where: str, words: list[str]) -> subprocess.Popen[str]:
    process = stack.enter_context(
        subprocess.Popen(
            ["ip", "netns", "exec", lab.space(where), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OTEL_SDK_DISABLED": "true"},
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Make the nodes, start their proxies, and remove all."""
    made = Lab(uuid.uuid4().hex[:5], tmp_path_factory.mktemp("cluster"))
    with ExitStack() as stack:
        _wire(made, stack)
        for name in NODES:
            (made.folder / name).mkdir()
            words = [sys.executable, "-m", "tests.netns.cluster_driver", str(made.folder / name), name]
            driver = _start(stack, made, name, words)
            made.drivers[name] = driver
            # Its stdin ends, and it ends the proxy.
            stack.callback(_ended, driver)
        for number, (name, address) in enumerate(NODES.items()):
            made.put("nodes", a_node(name, number, address))
        yield made


def _ended(driver: subprocess.Popen[str]) -> None:
    assert driver.stdin is not None
    driver.stdin.close()
    driver.wait(10)


@pytest.fixture
def served(lab: Lab) -> Lab:
    """Put the plain service over all pods, and wait until both nodes have it."""
    set_up(lab, a_service(), "a2", "a3", "b2")
    return lab


def set_up(lab: Lab, service: dict[str, Any], *pods: str) -> None:
    """Put a service over pods, and wait until each node leads to every one of them."""
    lab.put("services", service)
    lab.put("endpointslices", a_slice(*pods))
    lead_to(lab, *pods)


def lead_to(lab: Lab, *pods: str) -> None:
    """Wait until each node leads to every one of these, and to no other."""
    eventually(lambda: all(lab.names(node, VIP) == set(pods) for node in NODES))


def test_each_node_routes_to_the_others_pods(served: Lab) -> None:
    """By the other's address; pods see each other's own addresses."""
    eventually(lambda: served.routes("a") and served.routes("b"))

    assert served.routes("a").split()[:3] == ["10.77.1.0/24", "via", NODES["b"]]
    assert served.ask("a2", PODS["b2"], 8080) == {f"b2/{PODS['a2']}": 1}
    assert served.ask("b2", PODS["a3"], 8080) == {f"a3/{PODS['b2']}": 1}


@pytest.mark.parametrize("where", ["a2", "b2", "a", "b"])
def test_a_service_address_leads_to_pods_of_all_nodes(served: Lab, where: str) -> None:
    """From pods and nodes alike."""
    eventually(lambda: served.names(where, VIP) == {"a2", "a3", "b2"})


def test_a_pod_keeps_its_address_towards_other_nodes(served: Lab) -> None:
    """Only itself it sees as the node, which a hairpin needs."""
    answers = served.ask("b2", VIP, 80, 40)

    assert {a.partition("/")[2] for a in answers if not a.startswith("b2/")} == {PODS["b2"]}
    assert {a for a in answers if a.startswith("b2/")} == {"b2/10.77.1.1"}


@pytest.mark.parametrize("node", list(NODES))
def test_a_node_port_of_any_node_leads_to_pods_of_all(served: Lab, node: str) -> None:
    """And the answer comes back by that node, since the pod saw that node."""
    assert served.names("client", NODES[node], 30080) == {"a2", "a3", "b2"}
    assert CLIENT not in served.seen("client", NODES[node], 30080)


def test_what_comes_from_outside_to_the_inside_is_masqueraded(served: Lab) -> None:
    """The client's packets for the service address come by node a."""
    assert served.names("client", VIP) == {"a2", "a3", "b2"}
    assert CLIENT not in served.seen("client", VIP)


def test_a_local_policy_keeps_the_clients_address_and_drops_elsewhere(lab: Lab) -> None:
    """A load balancer hears nothing from the node without a pod; pods and nodes still get through."""
    set_up(lab, a_service(externalTrafficPolicy="Local"), "a2")
    try:
        eventually(lambda: lab.ask("client", NODES["b"], 30080) == {"TimeoutError": 1})

        assert lab.ask("client", NODES["a"], 30080, 5) == {f"a2/{CLIENT}": 5}
        assert lab.names("b2", NODES["b"], 30080, 3) == {"a2"}
        assert lab.names("b", NODES["b"], 30080, 3) == {"a2"}
    finally:
        set_up(lab, a_service(), "a2", "a3", "b2")


def test_an_internal_policy_stays_on_the_node(lab: Lab) -> None:
    """Each node's pods get their own node's endpoints; without any, nothing."""
    lab.put("services", a_service(internalTrafficPolicy="Local"))
    lab.put("endpointslices", a_slice("a2", "b2"))
    eventually(lambda: lab.names("a3", VIP) == {"a2"} and lab.names("b2", VIP) == {"b2"})

    lab.put("endpointslices", a_slice("a2"))
    eventually(lambda: lab.ask("b2", VIP) == {"TimeoutError": 1})
    assert lab.names("a3", VIP) == {"a2"}
    set_up(lab, a_service(), "a2", "a3", "b2")


@pytest.mark.parametrize("where", ["a2", "client"])
def test_a_client_stays_with_its_endpoint(lab: Lab, where: str) -> None:
    """As long as that endpoint is there; then it stays with another, and others come and go meanwhile."""
    affinity: dict[str, Any] = {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
    }
    lab.put("endpointslices", a_slice("a2", "a3", "b2"))
    lab.put("services", a_service(**affinity))
    eventually(lambda: "stick-" in lab.run("a", "nft", "list", "map", "ip", "tripod-proxy", "service-ips"))

    (chosen,) = lab.names(where, VIP, count=20)
    # The node port leads the same client to the same endpoint.
    target = NODES["a"]
    assert lab.names(where, target, 30080, 5) == {chosen}
    others = [pod for pod in PODS if pod != chosen]
    lab.put("endpointslices", a_slice(chosen, others[0]))
    eventually(lambda: PODS[others[1]] not in lab.run("a", "nft", "list", "table", "ip", "tripod-proxy"))
    assert lab.names(where, VIP, count=10) == {chosen}
    lab.put("endpointslices", a_slice(*others))
    eventually(lambda: PODS[chosen] not in lab.run("a", "nft", "list", "table", "ip", "tripod-proxy"))
    (next_one,) = lab.names(where, VIP, count=10)
    assert next_one in others
    set_up(lab, a_service(), "a2", "a3", "b2")


def test_a_balancers_address_lets_in_who_may(lab: Lab) -> None:
    """Source ranges guard it, and external addresses not."""
    balanced = a_service(
        type="LoadBalancer", loadBalancerSourceRanges=[f"{CLIENT}/32"], externalIPs=["203.0.113.6"]
    )
    balanced["status"] = {
        "loadBalancer": {"ingress": [{"ip": "203.0.113.5"}, {"ip": "203.0.113.7", "ipMode": "Proxy"}]}
    }
    for name in ("client", "a2"):
        gateway = NODES["a"] if name == "client" else "10.77.0.1"
        shell(f"ip -n {lab.space(name)} route replace 203.0.113.0/24 via {gateway}")
    set_up(lab, balanced, "a2", "a3", "b2")

    assert lab.names("client", "203.0.113.5") == {"a2", "a3", "b2"}
    assert lab.names("client", "203.0.113.6") == {"a2", "a3", "b2"}
    assert lab.ask("a3", "203.0.113.5") == {"TimeoutError": 1}
    assert lab.names("a3", "203.0.113.6") == {"a2", "a3", "b2"}
    listed = lab.run("a", "nft", "list", "map", "ip", "tripod-proxy", "service-ips")
    assert "203.0.113.7" not in listed
    set_up(lab, a_service(), "a2", "a3", "b2")


def test_a_health_check_port_tells_of_this_nodes_endpoints(lab: Lab) -> None:
    """A load balancer asks each node."""
    balanced = a_service(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=32000)
    set_up(lab, balanced, "a2")
    look = (
        "import urllib.request, urllib.error, sys\n"
        "try: r = urllib.request.urlopen(sys.argv[1], timeout=2)\n"
        "except urllib.error.HTTPError as e: r = e\n"
        "except OSError: sys.exit(print('none'))\n"
        "print(r.status, r.headers.get('X-Load-Balancing-Endpoint-Weight'), r.read().decode())"
    )

    def asked(node: str, port: int = 32000, path: str = "") -> str:
        return lab.run("client", sys.executable, "-c", look, f"http://{NODES[node]}:{port}/{path}")

    eventually(lambda: asked("a").startswith("200 1 "))
    eventually(lambda: asked("b").startswith("503 0 "))
    assert '"serviceProxyHealthy": true' in asked("b")
    assert asked("a", 10256, "healthz").startswith("200 ")
    leaving = a_node("a", 0, NODES["a"])
    leaving["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
    lab.put("nodes", leaving)
    eventually(lambda: asked("a", 10256, "healthz").startswith("503 "))
    assert asked("a", 10256, "livez").startswith("200 ")
    lab.put("nodes", a_node("a", 0, NODES["a"]))
    set_up(lab, a_service(), "a2", "a3", "b2")
    eventually(lambda: asked("a").startswith("none"))


def test_while_the_api_server_is_away_everything_goes_on(served: Lab) -> None:
    """Connections live, new ones are made, and a proxy that starts meanwhile keeps the rules."""
    served.tell({"do": "stop"})
    served.tell({"restart": True}, nodes="a")

    assert served.names("b2", VIP) == {"a2", "a3", "b2"}
    assert served.names("a2", VIP) == {"a2", "a3", "b2"}
    assert served.ask("a2", PODS["b2"], 8080) == {f"b2/{PODS['a2']}": 1}
    served.tell({"do": "start"})
    served.put("endpointslices", a_slice("b2"))
    lead_to(served, "b2")


def test_streams_that_are_cut_and_history_that_is_gone_lose_nothing(served: Lab) -> None:
    """Every stream is cut again and again while endpoints change; at the end all is as told."""
    for pods in (["a2"], ["b2"], ["a3", "b2"], ["a2", "a3"]):
        served.tell({"do": "cut_streams"})
        served.put("endpointslices", a_slice(*pods))
        served.tell({"do": "compact"})
    lead_to(served, "a2", "a3")


@pytest.mark.parametrize(
    ("foreign", "told"),
    [
        ("10.77.1.0/24 via 192.0.2.2 proto static", "10.77.1.0/24 via 192.0.2.2 (protocol 4)"),
        ("blackhole 10.77.1.0/24 proto static", "10.77.1.0/24 (protocol 4)"),
        (
            "10.77.1.0/24 via 192.0.2.2 proto 84 metric 9",
            "10.77.1.0/24 via 192.0.2.2 (protocol 84, metric 9)",
        ),
    ],
)
def test_routes_are_put_back_and_foreign_ones_left(served: Lab, foreign: str, told: str) -> None:
    """One that somebody removed comes back at once; one of another program is told, not replaced."""
    eventually(lambda: served.routes("a"))
    served.run("a", "ip", "route", "del", "10.77.1.0/24")
    eventually(lambda: served.routes("a"))

    served.tell({"remove": ["nodes", "", "b"]})
    eventually(lambda: not served.routes("a"))
    served.run("a", "ip", "route", "add", *foreign.split())
    before = served.routes("a")
    served.put("nodes", a_node("b", 1, NODES["b"]))
    eventually(lambda: f"another program's route is there: {told}" in served.log("a"))
    assert served.routes("a") == before
    served.run("a", "ip", "route", "del", *foreign.split())
    eventually(lambda: served.routes("a"))


def test_cleanup_leaves_nothing(served: Lab) -> None:
    """Rules and routes go; a proxy that runs would put them back, so it starts anew afterwards."""
    eventually(lambda: served.routes("b"))
    served.drivers["b"].send_signal(19)
    found = served.run("b", "pgrep", "-f", f"services.proxy --node-name b .*{served.folder}/b/")
    proxies = [int(word) for word in found.split()]
    for pid in proxies:
        os.kill(pid, 19)
    try:
        served.run("b", sys.executable, "-m", "services.proxy", "--cleanup")
        assert not served.routes("b")
        assert "tripod-proxy" not in served.run("b", "nft", "list", "tables")
    finally:
        for pid in [*proxies, served.drivers["b"].pid]:
            os.kill(pid, 18)
    eventually(lambda: served.names("b", VIP) == {"a2", "a3", "b2"})
    eventually(lambda: served.routes("b"))
