"""Kill the proxy of a cluster's node at every instant, in a network namespace of its own, under traffic.

The story: a service with two endpoints works and is asked all the time, and another node's pods
have a route. The proxy starts and follows an API server, which lives in the namespace as well: an
endpoint comes and goes, another service comes, changes and goes, a node comes, moves and goes, and
somebody else removes its route meanwhile. Routes of other programs are there all the time, one of
them in the way of a node's.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from services.kubelet.cri.network.links import in_netns
from services.proxy.adapters.nfmessages import attributes
from tests.fakes.kube_server import KubeServer
from tests.matrix.process import Failure, enumerate_instants, until
from tests.matrix.proxy import (
    BACKENDS,
    NODE,
    OTHER_VIP,
    VIP,
    World,
    first_life,
    judge,
    namespace,
    proxy_in,
)

OWN = "a"
# Networks of the pods of nodes, and the addresses of those nodes: b comes and goes, c stays, and
# another program's route is where that of d would be.
B_NETWORK, B_ADDRESS, B_MOVED = "10.78.1.0/24", "10.77.1.11", "10.77.1.12"
C_NETWORK, C_ADDRESS = "10.78.2.0/24", "10.77.1.13"
D_NETWORK, D_ADDRESS = "10.78.3.0/24", "10.77.1.14"
STRANGER = "10.77.1.99"
FOREIGN = (
    f"{D_NETWORK} via {STRANGER} proto static",
    f"10.78.4.0/24 via {STRANGER} proto bird metric 32",
)
STEADY = {C_NETWORK: C_ADDRESS}
# RTM_DELROUTE and its multicast group; rtmsg's first four bytes; RTA_DST, RT_TABLE_MAIN.
_DELETED, _GROUP, _DESTINATION, _MAIN = 25, 0x40, 1, 254
_HEAD, _ROUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBBBBBI")


class GoneRoutes:
    """Hears of each route that leaves the main table of a namespace."""

    def __init__(self, netns: str) -> None:
        self._socket = _inside(netns, self._listen)

    @staticmethod
    def _listen() -> socket.socket:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        made.bind((0, _GROUP))
        made.setblocking(False)
        return made

    def heard(self) -> Counter[str]:
        """Return how often each network lost its route since the last call."""
        found: Counter[str] = Counter()
        try:
            while True:
                found.update(_gone(self._socket.recv(1 << 16)))
        except BlockingIOError:
            return found

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _gone(data: bytes) -> Iterator[str]:
    offset = 0
    while offset + _HEAD.size <= len(data):
        length, kind, *_ = _HEAD.unpack_from(data, offset)
        body = data[offset + _HEAD.size : offset + length]
        offset += (length + 3) & ~3
        if kind != _DELETED:
            continue
        _, bits, _, _, table, *_ = _ROUTE.unpack_from(body)
        inner = attributes(body[_ROUTE.size :])
        if table == _MAIN:
            yield str(IPv4Network((inner.get(_DESTINATION, bytes(4)), bits)))


def _inside(netns: str, act: Any) -> socket.socket:
    """Make a socket in a namespace; it stays there, whoever uses it."""
    descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        made: socket.socket = in_netns(descriptor, act)
        return made
    finally:
        os.close(descriptor)


def a_node(name: str, address: str, network: str) -> dict[str, Any]:
    """Make a node."""
    return {
        "metadata": {"name": name},
        "spec": {"podCIDRs": [network]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def a_service(name: str, address: str, *ports: tuple[str, int]) -> dict[str, Any]:
    """Make a service with ports, each a protocol and a number."""
    made = [{"name": f"p{number}", "protocol": protocol, "port": number} for protocol, number in ports]
    return {
        "metadata": {"name": name, "namespace": "default", "uid": f"service-{name}"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "ports": made},
    }


def a_slice(service: str, backends: Sequence[str], *ports: tuple[str, int]) -> dict[str, Any]:
    """Make the slice of a service over backends."""
    return {
        "metadata": {
            "name": f"{service}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": f"p{number}", "protocol": protocol, "port": 7000} for protocol, number in ports],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True},
                "nodeName": OWN,
                "targetRef": {"kind": "Pod", "uid": f"pod-{address}", "name": f"pod-{address}"},
            }
            for address in backends
        ],
    }


WEB = (("TCP", 80), ("UDP", 53))


@dataclass
class Cluster:
    """A node's proxy in its namespace, and the API server that it follows."""

    proxy: World
    api: KubeServer
    gone: GoneRoutes
    rules: str = ""
    foreign: str = ""

    def routes(self) -> dict[str, str]:
        """Return our routes, as the kernel has them."""
        lines = self.proxy.run("ip", "route", "show", "proto", "84").splitlines()
        return {words[0]: words[2] for words in map(str.split, lines)}

    def others(self) -> str:
        """Return everybody else's routes, as the kernel has them."""
        lines = self.proxy.run("ip", "route", "show").splitlines()
        return "\n".join(line for line in lines if "proto 84" not in line)

    def whole(self) -> str:
        """Return our rules as the kernel lists them, in an order of their own."""
        parts = self.proxy.listing().split("\n\n")
        return "\n\n".join(sorted(part.strip("\n\t }") for part in parts))

    async def routed(self, wanted: Mapping[str, str], what: str) -> None:
        """Wait until the kernel has exactly these routes of ours, and an audit agrees."""

        async def holds() -> bool:
            # Killed by the news, it must first come back.
            await self.proxy.service.revive()
            return self.routes() == wanted and await self.proxy.clean()

        await until(holds, what)


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Cluster]:
    """Make a namespace with an API server and routes of other programs, and a proxy that was not started."""
    folder.mkdir(parents=True)
    async with namespace() as netns:
        api = KubeServer()
        url = await api.start(_inside(netns, lambda: socket.create_server(("127.0.0.1", 0))))
        gone = GoneRoutes(netns)
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(_kubeconfig(url))
        kubeconfig.chmod(0o600)
        settings = {
            "TRIPOD_NODE_NAME": OWN,
            "TRIPOD_KUBECONFIG": str(kubeconfig),
            "TRIPOD_CNI_CONF_DIR": str(folder / "none"),
        }
        try:
            async with proxy_in(netns, folder, settings) as proxy:
                for route in FOREIGN:
                    proxy.run("ip", "route", "add", *route.split())
                made = Cluster(proxy, api, gone)
                made.foreign = made.others()
                yield made
        finally:
            gone.close()
            await api.stop()


def _kubeconfig(url: str) -> str:
    return json.dumps(
        {
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c"}}],
            "current-context": "c",
        }
    )


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Make a stage on which an unarmed proxy has programmed what there is, and a client asks."""
    async with stage(folder) as made:
        made.api.put("nodes", a_node(OWN, NODE, "10.77.0.0/24"))
        made.api.put("nodes", a_node("c", C_ADDRESS, C_NETWORK))
        made.api.put("nodes", a_node("d", D_ADDRESS, D_NETWORK))
        made.api.put("services", a_service("web", VIP, *WEB))
        made.api.put("endpointslices", a_slice("web", BACKENDS[:2], *WEB))
        await first_life(made.proxy)
        await made.routed(STEADY, "the node that stays has its route")
        await made.proxy.service.kill()
        made.rules = made.whole()
        made.gone.heard()
        yield made


async def tell(made: Cluster) -> None:
    """Go through the story."""
    api, proxy = made.api, made.proxy
    await proxy.programmed("web", 2)
    api.put("endpointslices", a_slice("web", BACKENDS, *WEB))
    await proxy.programmed("web", 3)
    api.put("endpointslices", a_slice("web", BACKENDS[:2], *WEB))
    await proxy.programmed("web", 2)
    await _another_service(made)
    api.put("nodes", a_node("b", B_ADDRESS, B_NETWORK))
    await made.routed({**STEADY, B_NETWORK: B_ADDRESS}, "a node that came has its route")
    api.put("nodes", a_node("b", B_MOVED, B_NETWORK))
    await made.routed({**STEADY, B_NETWORK: B_MOVED}, "the route follows its node")
    proxy.run("ip", "route", "del", B_NETWORK)
    await made.routed({**STEADY, B_NETWORK: B_MOVED}, "a route that somebody removed is put back")
    api.remove("nodes", "", "b")
    await made.routed(STEADY, "the route goes with its node")


async def _another_service(made: Cluster) -> None:
    api, proxy = made.api, made.proxy
    first, second = ("UDP", 81), ("UDP", 82)
    api.put("services", a_service("other", OTHER_VIP, first))
    api.put("endpointslices", a_slice("other", BACKENDS[2:], first))
    await proxy.programmed("other", 1)
    api.put("services", a_service("other", OTHER_VIP, second))
    api.put("endpointslices", a_slice("other", BACKENDS[2:], second))

    async def changed() -> bool:
        await proxy.service.revive()
        listing = proxy.listing()
        has, had = (f"{OTHER_VIP} . udp . {number} " in listing for number in (82, 81))
        return has and not had and await proxy.clean()

    await until(changed, "the other service has its new port")
    api.remove("services", "default", "other")
    api.remove("endpointslices", "default", "other-1")

    async def alone() -> bool:
        await proxy.service.revive()
        return OTHER_VIP not in proxy.listing() and await proxy.clean()

    await until(alone, "the other service is gone")


async def judge_cluster(made: Cluster) -> None:
    """Check the invariants after the story. Raises `Failure`."""
    if made.whole() != made.rules:
        raise Failure(f"I4 no leak: the rules are not what they were: {made.whole()}")
    await judge(made.proxy)
    # The proxy has ended by now, and its routes stay.
    if made.routes() != STEADY:
        raise Failure(f"I8 dataplane: with the proxy gone there are {made.routes()}")
    if made.others() != made.foreign:
        raise Failure(f"I11 in doubt nothing is destroyed: others' routes are {made.others()}")
    # Once by somebody else, once with the node; never that of a node that stays, nor while its node moves.
    gone = made.gone.heard()
    if gone != {B_NETWORK: 2}:
        raise Failure(f"I8 dataplane: routes went away: {dict(gone)}")


class ClusterProxyMatrix:
    """The instants of the story of a cluster's node."""

    name = "proxy-cluster"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def instants(self) -> list[tuple[str, int]]:
        """Go through the story once without kills."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "instants.log"
        async with cluster(self._folder / "list") as made:
            await made.proxy.service.start(f"*=log({log})")
            await tell(made)
            await judge_cluster(made)
        return enumerate_instants(log.read_text().split(), 7)

    async def run(self, instant: str, occurrence: int) -> bool:
        """Kill at one instant."""
        off = f"{occurrence - 1}*off->" if occurrence > 1 else ""
        async with cluster(self._folder / f"{instant}-{occurrence}") as made:
            await made.proxy.service.start(f"{instant}={off}1*kill->off")
            await tell(made)
            await judge_cluster(made)
            return made.proxy.service.killed_itself
