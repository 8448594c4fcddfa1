"""A pod's resolver follows its policy, its own wishes and the limits of resolvers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.kubelet.core.dns import DnsOption, DnsPolicy, DnsWish, NodeDns, PodDns, pod_dns

NODE = NodeDns(
    servers=("9.9.9.9",),
    searches=("node.example",),
    options=("timeout:1",),
    own_servers=("127.0.0.53", "9.9.9.9"),
)
CLUSTER = replace(NODE, cluster_servers=("10.96.0.10",), in_cluster=True)
OF_NODE = PodDns(("9.9.9.9",), ("node.example",), ("timeout:1",))
OF_HOST = replace(OF_NODE, servers=("127.0.0.53", "9.9.9.9"))
OF_CLUSTER = PodDns(
    ("10.96.0.10",),
    ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "node.example"),
    ("ndots:5",),
)
FIRST, WITH_HOST = DnsPolicy.CLUSTER_FIRST, DnsPolicy.CLUSTER_FIRST_WITH_HOST_NET


def resolver(wish: DnsWish, node: NodeDns, *, host_network: bool = False) -> PodDns:
    """Compute for a pod of the namespace `shop`."""
    return pod_dns(wish, node, namespace="shop", host_network=host_network, pod="shop/web")


@pytest.mark.parametrize(
    ("policy", "node", "host_network", "expected"),
    [
        pytest.param(FIRST, CLUSTER, False, OF_CLUSTER, id="the-clusters-server-first"),
        pytest.param(FIRST, NODE, False, OF_NODE, id="standalone-the-nodes"),
        pytest.param(FIRST, CLUSTER, True, OF_HOST, id="on-the-hosts-network-the-hosts"),
        pytest.param(WITH_HOST, CLUSTER, True, OF_CLUSTER, id="unless-that-is-asked-for"),
        pytest.param(WITH_HOST, CLUSTER, False, OF_CLUSTER, id="which-changes-nothing-elsewhere"),
        pytest.param(DnsPolicy.DEFAULT, CLUSTER, False, OF_NODE, id="default-is-the-nodes"),
        pytest.param(DnsPolicy.DEFAULT, CLUSTER, True, OF_HOST, id="with-servers-on-loopback"),
        pytest.param(DnsPolicy.NONE, CLUSTER, False, PodDns(), id="none-is-nothing"),
    ],
)
def test_a_policy_says_where_to_begin(
    policy: DnsPolicy, node: NodeDns, host_network: bool, expected: PodDns
) -> None:
    """As the original does."""
    assert resolver(DnsWish(policy), node, host_network=host_network) == expected


def test_a_cluster_without_a_server_is_told() -> None:
    """The pod has the node's resolver then."""
    found = resolver(DnsWish(), replace(CLUSTER, cluster_servers=()))

    assert replace(found, warnings=()) == OF_NODE
    assert [reason for reason, _ in found.warnings] == ["MissingClusterDNS"]


def test_what_a_pod_says_is_added() -> None:
    """Equal ones once; an option takes the place of one of its name."""
    wish = DnsWish(
        servers=("1.1.1.1", "10.96.0.10"),
        searches=("cluster.local", "shop.example"),
        options=(DnsOption("ndots", "2"), DnsOption("edns0")),
    )
    found = resolver(wish, CLUSTER)

    assert found.servers == ("10.96.0.10", "1.1.1.1")
    assert found.searches == (*OF_CLUSTER.searches, "shop.example")
    assert found.options == ("ndots:2", "edns0")


def test_a_resolver_reads_three_servers() -> None:
    """The rest is cut off and told."""
    found = resolver(DnsWish(servers=("1.1.1.1", "2.2.2.2", "3.3.3.3")), CLUSTER)

    assert found.servers == ("10.96.0.10", "1.1.1.1", "2.2.2.2")
    ((reason, message),) = found.warnings
    assert reason == "DNSConfigForming"
    assert message.endswith("the applied nameserver line is: 10.96.0.10 1.1.1.1 2.2.2.2")


@pytest.mark.parametrize(
    ("searches", "kept"),
    [
        pytest.param(tuple(f"d{n}" for n in range(33)), 32, id="thirty-two-domains"),
        pytest.param(tuple(f"{n:03}" + "x" * 200 for n in range(12)), 10, id="2048-characters"),
        pytest.param(("a", "x" * 254, "b"), 2, id="none-longer-than-a-name-can-be"),
    ],
)
def test_a_resolver_reads_so_much_of_a_search_line(searches: tuple[str, ...], kept: int) -> None:
    """Some resolvers abort on more."""
    found = resolver(DnsWish(DnsPolicy.NONE, searches=searches), NODE)

    assert len(found.searches) == kept
    assert [reason for reason, _ in found.warnings] == ["DNSConfigForming"]
    assert len(" ".join(found.searches)) <= 2048
