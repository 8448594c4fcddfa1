"""Pods, services and node ports reach each other across nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.cluster.objects import SERVER_PORT, marks, pod, server, service
from tests.lab.cluster import Cluster, until

pytestmark = marks


@dataclass(frozen=True, slots=True)
class Net:
    """A server on each node, a client on each node, and a service of both servers."""

    made: Cluster
    pod_address: dict[str, str]
    cluster_address: str
    node_port: int

    async def ask(self, client: str, address: str) -> str:
        """Ask from a client's pod; return the answer, or the error."""
        done = await self.made.kubectl(
            "exec",
            f"client-{client}",
            "--",
            "wget",
            "-q",
            "-O",
            "-",
            f"http://{address}/",
            check=False,
        )
        return done.out.strip() or done.err.strip()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def net(made: Cluster) -> AsyncIterator[Net]:
    """Make all of them."""
    servers = []
    for node in ("a", "b"):
        found = pod(f"server-{node}", node=node, labels={"app": "net"})
        found["spec"]["containers"] = [server()]
        servers.append(found)
    clients = [pod(f"client-{node}", node=node) for node in ("a", "b")]
    await made.apply(service("net", type="NodePort"), *servers, *clients)
    await made.ready("server-a", "server-b", "client-a", "client-b")
    spec = (await made.plane.get("/api/v1/namespaces/default/services/net"))["spec"]
    addresses = {node: (await made.pod(f"server-{node}"))["status"]["podIP"] for node in ("a", "b")}
    yield Net(made, addresses, spec["clusterIP"], spec["ports"][0]["nodePort"])
    await made.delete("service/net", "pod/server-a", "pod/server-b", "pod/client-a", "pod/client-b")


@pytest.mark.parametrize("server_node", ["a", "b"])
@pytest.mark.parametrize("client_node", ["a", "b"])
async def test_a_pod_reaches_a_pod_by_its_address(net: Net, client_node: str, server_node: str) -> None:
    """On the same node and on the other one."""
    address = f"{net.pod_address[server_node]}:{SERVER_PORT}"

    assert await net.ask(client_node, address) == f"server-{server_node} 1"


@pytest.mark.parametrize("client_node", ["a", "b"])
async def test_a_pod_reaches_both_servers_by_the_service(net: Net, client_node: str) -> None:
    """Whatever node they are on."""
    seen: set[str] = set()

    async def both() -> bool:
        seen.add(await net.ask(client_node, net.cluster_address))
        return seen >= {"server-a 1", "server-b 1"}

    await until(both, f"both servers answer client-{client_node}, not {seen}")
    assert seen == {"server-a 1", "server-b 1"}


@pytest.mark.parametrize("node", ["a", "b"])
async def test_a_node_port_answers_on_either_node(net: Net, node: str) -> None:
    """To pods, and to this host, which is no node."""
    address = f"{net.made.nodes[node].address}:{net.node_port}"
    other = {"a": "b", "b": "a"}[node]

    assert await net.ask(node, address) in {"server-a 1", "server-b 1"}
    assert await net.ask(other, address) in {"server-a 1", "server-b 1"}


async def test_a_pod_reaches_the_api_server_as_its_service_account(net: Net) -> None:
    """By the service `kubernetes`, with the token and the authority that the kubelet brings in."""
    words = (
        "T=/var/run/secrets/kubernetes.io/serviceaccount; ls $T; head -c 3 $T/token; echo; "
        "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT; cat $T/namespace"
    )

    done = await net.made.kubectl("exec", "client-a", "--", "sh", "-c", words)

    assert done.out.split() == ["ca.crt", "namespace", "token", "eyJ", "10.96.0.1:443", "default"]
    closed = await net.made.kubectl(
        "exec", "client-a", "--", "sh", "-c", "nc -w 2 10.96.0.1 443 </dev/null && echo open", check=False
    )
    assert closed.out == "open\n"


async def test_nodes_have_networks_of_their_own(net: Net) -> None:
    """The controller gives each node a part of the pods' network; pods have addresses of it."""
    for name in net.made.nodes:
        node = await net.made.plane.get(f"/api/v1/nodes/{name}")
        network = node["spec"]["podCIDR"].rpartition(".")[0]

        assert net.pod_address[name].rpartition(".")[0] == network
