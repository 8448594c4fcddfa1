"""A pod's resolver: name servers, search domains and options. Pure.

ClusterFirst means the cluster's server and domains, where the node knows them; else it falls back to Default,
which means the node's own. On the host's network ClusterFirst is Default; ClusterFirstWithHostNet is not.
None starts with nothing. What the pod's `dnsConfig` says is added in each case; equal ones are left out, and
an option of the pod's takes the place of one of that name. What resolvers do not read is cut off, and told.

Source: Kubernetes "DNS for Services and Pods"; the kubelet's `network/dns/dns.go`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

SERVER_LIMIT = 3
SEARCH_LIMIT = 32
SEARCH_CHARACTERS = 2048
NAME_CHARACTERS = 253


class DnsPolicy(Enum):
    """Where a pod's resolver begins."""

    CLUSTER_FIRST = "ClusterFirst"
    CLUSTER_FIRST_WITH_HOST_NET = "ClusterFirstWithHostNet"
    DEFAULT = "Default"
    NONE = "None"


@dataclass(frozen=True, slots=True)
class DnsOption:
    """One option of the resolver; None for one without a value."""

    name: str
    value: str | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}:{self.value}"


@dataclass(frozen=True, slots=True)
class DnsWish:
    """What a pod says: `dnsPolicy` and `dnsConfig`."""

    policy: DnsPolicy = DnsPolicy.CLUSTER_FIRST
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[DnsOption, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeDns:
    """The node's resolver and the cluster's.

    `servers` are those of use to pods, `own_servers` also those on loopback, for pods on the host's network.
    `in_cluster` says that a missing cluster server is worth an event.
    """

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    own_servers: tuple[str, ...] = ()
    cluster_servers: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    in_cluster: bool = False


@dataclass(frozen=True, slots=True)
class PodDns:
    """What stands in a pod's resolv.conf. `warnings` are events: reason and message."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()


def pod_dns(wish: DnsWish, node: NodeDns, *, namespace: str, host_network: bool, pod: str = "") -> PodDns:
    """Compute a pod's resolver. `pod` names it in warnings."""
    base, warnings = _base(wish, node, namespace, pod, host_network=host_network)
    servers = tuple(dict.fromkeys((*base.servers, *wish.servers)))
    searches = tuple(dict.fromkeys((*base.searches, *wish.searches)))
    options = _options(base.options, wish.options)
    if len(servers) > SERVER_LIMIT:
        servers = servers[:SERVER_LIMIT]
        warnings += (_cut("Nameserver limits", "nameservers", "nameserver", servers),)
    kept = _fitting(searches)
    if kept != searches:
        warnings += (_cut("Search Line limits", "search paths", "search", kept),)
    return PodDns(servers, kept, options, warnings)


def _base(
    wish: DnsWish, node: NodeDns, namespace: str, pod: str, *, host_network: bool
) -> tuple[PodDns, tuple[tuple[str, str], ...]]:
    if wish.policy is DnsPolicy.NONE:
        return PodDns(), ()
    own = PodDns(node.own_servers if host_network else node.servers, node.searches, node.options)
    first = wish.policy is DnsPolicy.CLUSTER_FIRST and not host_network
    if not first and wish.policy is not DnsPolicy.CLUSTER_FIRST_WITH_HOST_NET:
        return own, ()
    if node.cluster_servers:
        searches = tuple(dict.fromkeys((*_cluster_searches(namespace, node.cluster_domain), *node.searches)))
        return PodDns(node.cluster_servers, searches, ("ndots:5",)), ()
    if not node.in_cluster:
        return own, ()
    message = (
        f'pod: "{pod}". kubelet does not have ClusterDNS IP configured and cannot create Pod using '
        '"ClusterFirst" policy. Falling back to "Default" policy.'
    )
    return own, (("MissingClusterDNS", message),)


def _cluster_searches(namespace: str, domain: str) -> tuple[str, ...]:
    return (f"{namespace}.svc.{domain}", f"svc.{domain}", domain) if domain else ()


def _options(base: Iterable[str], wanted: Iterable[DnsOption]) -> tuple[str, ...]:
    by_name = {option.partition(":")[0]: option for option in base}
    by_name |= {option.name: str(option) for option in wanted}
    return tuple(by_name.values())


def _fitting(searches: tuple[str, ...]) -> tuple[str, ...]:
    """Return the search domains that a resolver reads: so many, each short enough, together short enough."""
    kept = [search for search in searches[:SEARCH_LIMIT] if len(search) <= NAME_CHARACTERS]
    while len(" ".join(kept)) > SEARCH_CHARACTERS:
        kept.pop()
    return tuple(kept)


def _cut(limits: str, what: str, line: str, kept: tuple[str, ...]) -> tuple[str, str]:
    return (
        "DNSConfigForming",
        f"{limits} were exceeded, some {what} have been omitted, "
        f"the applied {line} line is: {' '.join(kept)}",
    )
