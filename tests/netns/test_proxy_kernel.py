"""The proxy's rules in a real kernel, in network namespaces that the test made."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns
VIP = "10.202.0.9"
NODE = "10.77.0.1"
ANSWER = """
import socket, sys, threading
name = sys.argv[1].encode()
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 53))
    while True:
        _, peer = s.recvfrom(100); s.sendto(name, peer)
threading.Thread(target=udp, daemon=True).start()
s = socket.create_server(("", 8080), backlog=100); print("ready", flush=True)
while True:
    c, _ = s.accept(); c.sendall(name); c.close()
"""
ASK = """
import socket, sys
kind, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for _ in range(count):
    try:
        if kind == "tcp":
            with socket.create_connection((host, port), timeout=3) as c: print(c.recv(100).decode())
        else:
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect((host, port))
            s.send(b"x"); print(s.recv(100).decode()); s.close()
    except OSError as error: print(type(error).__name__)
"""
PROGRAM = """
import asyncio, json, sys
from services.proxy.adapters.nftables import NftablesKernel
from services.proxy.core import compose, endpoints, parts, ruleset
from services.proxy.core.model import Pod, Protocol, Service, ServicePort
async def main():
    numbers = json.loads(sys.argv[1])
    made = {"labels": {"app": "web"}, "ready": True, "serving": True}
    pods = [Pod(f"u{i}", "default", f"web-{i}", address=f"10.77.0.{i}", **made) for i in numbers]
    ports = (ServicePort(80, 8080, node_port=30080), ServicePort(53, 53, Protocol.UDP, "dns"))
    web = Service("s", "default", "web", "10.202.0.9", ports, {"app": "web"})
    wanted = compose.build([endpoints.decide(web, pods)], parts.Surroundings(["10.77.0.1"]))
    kernel = NftablesKernel("tripod-proxy")
    present = await kernel.read()
    if isinstance(present, ruleset.Damage): await kernel.rewrite(wanted); print("rewrote")
    elif present != wanted: await kernel.change(ruleset.difference(present, wanted)); print("changed")
    else: print("unchanged")
    assert await kernel.read() == wanted
asyncio.run(main())
"""


@dataclass
class Lab:
    """A node and three pods on its bridge, each a namespace."""

    node: str
    pods: list[str]

    def run(self, where: str, *words: str) -> str:
        """Run a program in a namespace."""
        done = subprocess.run(
            ["ip", "netns", "exec", where, *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def program(self, *pods: int) -> str:
        """Program the node's kernel with some of the pods."""
        return self.run(self.node, sys.executable, "-c", PROGRAM, str(list(pods))).strip()

    def ask(self, where: str, kind: str, host: str, port: int, count: int = 40) -> Counter[str]:
        """Ask many times over fresh connections; count the answers."""
        return Counter(self.run(where, sys.executable, "-c", ASK, kind, host, str(port), str(count)).split())


def shell(text: str) -> None:
    """Run commands, each of which must succeed."""
    subprocess.run(["sh", "-ec", textwrap.dedent(text)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Make the namespaces, and remove them."""
    mark = uuid.uuid4().hex[:6]
    node, pods = f"tt{mark}n", [f"tt{mark}p{i}" for i in (2, 3, 4)]
    with ExitStack() as stack:
        for name in (node, *pods):
            shell(f"ip netns add {name}; ip -n {name} link set lo up")
            stack.callback(shell, f"ip netns del {name}")
        shell(f"""
            ip -n {node} link add br0 type bridge
            ip -n {node} addr add {NODE}/24 dev br0; ip -n {node} link set br0 up
            ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 || \
              ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1
            ip -n {node} route add default dev br0
        """)
        for number, pod in zip((2, 3, 4), pods, strict=True):
            shell(f"""
                ip -n {node} link add v{number} type veth peer name eth0 netns {pod}
                ip -n {node} link set v{number} master br0 up
                ip netns exec {node} sh -c 'echo 1 > /sys/class/net/v{number}/brport/hairpin_mode' || \
                  ip netns exec {node} bridge link set dev v{number} hairpin on
                ip -n {pod} addr add 10.77.0.{number}/24 dev eth0; ip -n {pod} link set eth0 up
                ip -n {pod} route add default via {NODE}
            """)
            server = stack.enter_context(
                subprocess.Popen(
                    ["ip", "netns", "exec", pod, sys.executable, "-c", ANSWER, f"web-{number}"],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(server.kill)
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        yield Lab(node, pods)


def bridged_packets_are_translated() -> bool:
    """Tell whether packets between ports of one bridge pass the rules here."""
    path = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    return path.exists() and path.read_text().strip() == "1"


@pytest.mark.parametrize(("kind", "port"), [("tcp", 80), ("udp", 53)])
def test_a_service_address_is_spread_over_its_pods(lab: Lab, kind: str, port: int) -> None:
    """From the node: every pod answers, and nothing fails."""
    lab.program(2, 3, 4)

    answers = lab.ask(lab.node, kind, VIP, port, 60)

    assert set(answers) == {"web-2", "web-3", "web-4"}


def test_a_node_port_is_spread_over_the_pods(lab: Lab) -> None:
    """On an address of the node."""
    lab.program(2, 3, 4)

    assert set(lab.ask(lab.node, "tcp", NODE, 30080, 60)) == {"web-2", "web-3", "web-4"}


def test_a_pod_reaches_itself_through_its_service(lab: Lab) -> None:
    """The only endpoint asks for itself: hairpin."""
    lab.program(2)

    assert lab.ask(lab.pods[0], "tcp", VIP, 80, 5) == {"web-2": 5}


def test_no_endpoints_means_refused_at_once(lab: Lab) -> None:
    """Not a time-out."""
    lab.program()

    assert lab.ask(lab.node, "tcp", VIP, 80, 3) == {"ConnectionRefusedError": 3}
    assert lab.ask(lab.pods[0], "tcp", VIP, 80, 3) == {"ConnectionRefusedError": 3}


def test_another_port_of_a_service_address_is_refused(lab: Lab) -> None:
    """Nothing stands behind it."""
    lab.program(2, 3, 4)

    assert lab.ask(lab.node, "tcp", VIP, 81, 2) == {"ConnectionRefusedError": 2}


def test_a_second_start_writes_nothing(lab: Lab) -> None:
    """The rules are read back; only a difference is written."""
    lab.program(2, 3)
    before = lab.run(lab.node, "nft", "list", "ruleset")

    assert lab.program(2, 3) == "unchanged"
    assert lab.run(lab.node, "nft", "list", "ruleset") == before
    assert lab.program(2, 4) == "changed"


def test_a_table_that_others_changed_is_made_anew(lab: Lab) -> None:
    """A foreign rule in our table, or a missing table, leads to a rewrite."""
    lab.program(2, 3)
    lab.run(lab.node, "nft", "add", "rule", "ip", "tripod-proxy", "services", "counter")
    assert lab.program(2, 3) == "rewrote"

    lab.run(lab.node, "nft", "delete", "table", "ip", "tripod-proxy")
    assert lab.program(2, 3) == "rewrote"
    assert set(lab.ask(lab.node, "tcp", VIP, 80)) == {"web-2", "web-3"}


def test_a_pod_reaches_another_through_the_service(lab: Lab) -> None:
    """On one bridge, where bridge netfilter is on."""
    if not bridged_packets_are_translated():
        pytest.skip("bridge netfilter is off: modprobe br_netfilter")
    lab.program(3)

    assert lab.ask(lab.pods[0], "tcp", VIP, 80, 5) == {"web-3": 5}
