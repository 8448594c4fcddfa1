"""A network of its own for a test: namespaces, sandboxes and packets, none of it on the host's links.

`host()` moves the test's thread into a fresh namespace that plays the node; threads and processes that
start inside inherit it. `Process` objects play sandboxes and the outside world; each ends with its `with`
block.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.kubelet.cri.network.links import setns

LIMIT_SECONDS = 5.0

_CLONE_NEWNET = 0x40000000


@contextmanager
def host() -> Iterator[None]:
    """Play the node: an empty network namespace with `lo` up, for this thread and what it starts."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            run("ip", "link", "set", "lo", "up")
            yield
        finally:
            setns(home)
    finally:
        os.close(home)


@contextmanager
def sandbox() -> Iterator[int]:
    """Play a sandbox: a process in a fresh network namespace. Yields its pid."""
    script = "echo up; exec sleep 1000"
    with subprocess.Popen(["unshare", "-n", "sh", "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process.pid
        finally:
            process.kill()


_SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("up", flush=True)
    while True:
        connection, peer = server.accept()
        with connection:
            connection.sendall(peer[0].encode())
"""

_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as connection:
    print(connection.recv(100).decode(), end="")
"""


@contextmanager
def tcp_server(pid: int, address: str, port: int) -> Iterator[None]:
    """Serve TCP inside the namespace of `pid`; each caller is told the address that he is seen with."""
    command = inside(pid, sys.executable, "-I", "-S", "-c", _SERVER, address, str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield
        finally:
            process.kill()


def peer_seen(pid: int | None, address: str, port: int, *, wait_seconds: float = 3) -> str:
    """Connect from the namespace of `pid` (None: the node's); return the address seen, "" if mute."""
    command = [sys.executable, "-I", "-S", "-c", _CLIENT, address, str(port), str(wait_seconds)]
    finished = subprocess.run(inside(pid, *command) if pid else command, capture_output=True, text=True)
    return finished.stdout if finished.returncode == 0 else ""


def pings(pid: int | None, address: str) -> bool:
    """Tell whether an echo request from the namespace of `pid` (None: the node's) is answered within 2 s."""
    command = ["busybox", "ping", "-c", "1", "-W", "2", address]
    finished = subprocess.run(inside(pid, *command) if pid else command, capture_output=True)
    return finished.returncode == 0


@contextmanager
def outside(network: str = "192.0.2", *, mtu: int = 1400) -> Iterator[int]:
    """Play the world beyond the node: a sandbox at `<network>.2`, the node's default route, node at `.1`."""
    with sandbox() as pid:
        peer = ("peer", "name", "eth0", "netns", str(pid))
        run("ip", "link", "add", "uplink", "mtu", str(mtu), "type", "veth", *peer)
        run("ip", "addr", "add", f"{network}.1/24", "dev", "uplink")
        run("ip", "link", "set", "uplink", "up")
        run(*inside(pid, "ip", "link", "set", "lo", "up"))
        run(*inside(pid, "ip", "addr", "add", f"{network}.2/24", "dev", "eth0"))
        run(*inside(pid, "ip", "link", "set", "eth0", "up"))
        run("ip", "route", "add", "default", "via", f"{network}.2")
        yield pid
        run("ip", "link", "del", "uplink")


def dockers_firewall(backend: str = "nft") -> None:
    """Write the rules that Docker Engine 20.10 writes, with its policy of DROP for forwarded packets."""
    feed = """*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
"""
    run(f"iptables-{backend}-restore", text=feed)


def snapshot() -> tuple[str, str, str, str]:
    """Take down what the node looks like: rules without counters, links, IPv4 addresses, switches.

    Left out is what comes and goes by itself: carrier, link-local addresses, neighbours.
    """
    rules = "\n".join(line for line in run("iptables-nft-save").splitlines() if not line.startswith("#"))
    switches = [Path(f"/proc/sys/net/{key}").read_text() for key in SWITCHES]
    links = json.loads(run("ip", "-j", "link"))
    kept = [
        {key: link.get(key) for key in ("ifname", "address", "mtu", "master", "ifalias")} for link in links
    ]
    return rules, json.dumps(kept), run("ip", "-4", "-o", "addr"), "".join(switches)


SWITCHES = ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables", "ipv4/conf/all/route_localnet")


def switch(key: str, value: str) -> None:
    """Set an entry under /proc/sys/net of the node."""
    Path(f"/proc/sys/net/{key}").write_text(value)


def inside(pid: int, *command: str) -> list[str]:
    """Prefix a command so that it runs in the network namespace of `pid`."""
    return ["nsenter", "-t", str(pid), "-n", *command]


def run(*command: str, text: str = "") -> str:
    """Run a command, which must succeed, and return its output."""
    finished = subprocess.run(command, input=text, capture_output=True, text=True, timeout=LIMIT_SECONDS * 2)
    assert finished.returncode == 0, f"{command}: {finished.stderr}"
    return finished.stdout
