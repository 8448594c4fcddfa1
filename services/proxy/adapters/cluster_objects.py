"""Services, EndpointSlices and Nodes as an API server sends them, as our values. Raises `ValueError`.

What a service asks for and does not get is among its refusals, with the field's path.

Source: Kubernetes API reference, `Service` v1, `discovery.k8s.io/v1` EndpointSlice, `Node` v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from services.common.kuberequest import Json, Resource, Selection
from services.proxy.core.cluster import Node
from services.proxy.core.model import Protocol, Refusal, Service, ServicePort
from services.proxy.core.slices import Slice, SliceEndpoint, SlicePort

_NOT_OURS = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
SERVICES = Selection(Resource("v1", "services"), label_selector=_NOT_OURS)
SLICES = Selection(Resource("discovery.k8s.io/v1", "endpointslices"), label_selector=_NOT_OURS)
NODES = Selection(Resource("v1", "nodes", namespaced=False))
_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_DEFAULT_AFFINITY_SECONDS = 10_800
_TRIGGERED = "endpoints.kubernetes.io/last-change-trigger-time"
_ZONE = "topology.kubernetes.io/zone"
_SCALED_DOWN = "ToBeDeletedByClusterAutoscaler"
# A range that nobody is in: ranges of the other family alone let none in of ours.
_NOBODY = "255.255.255.255/32"


def service_value(item: Json) -> Service:
    """Read a service. One without an IPv4 address, headless or external, has no `cluster_ip`."""
    meta, spec = item["metadata"], item.get("spec") or {}
    refusals: list[Refusal] = []
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or ""]
    own = list(_ipv4(addresses, "spec.clusterIPs", refusals))
    ignored = spec.get("type") == "ExternalName"
    balanced = spec.get("type") == "LoadBalancer"
    outer_local = spec.get("externalTrafficPolicy") == "Local"
    return Service(
        uid=str(meta["uid"]),
        namespace=meta.get("namespace", ""),
        name=meta["name"],
        cluster_ip=own[0] if own and not ignored else "",
        ports=tuple(_ports(spec, refusals)),
        selector=dict(spec.get("selector") or {}),
        publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
        revision=_revision(meta),
        affinity_seconds=_affinity(spec),
        external_local=outer_local,
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        external_ips=tuple(_ipv4(spec.get("externalIPs") or (), "spec.externalIPs", refusals)),
        balancer_ips=tuple(_balancer_ips(item, refusals)) if balanced else (),
        source_ranges=_source_ranges(spec, refusals) if balanced else (),
        health_port=int(spec.get("healthCheckNodePort") or 0) if balanced and outer_local else 0,
        refusals=() if ignored else tuple(refusals),
    )


def _revision(meta: Mapping[str, Any]) -> int:
    text = str(meta.get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _ports(spec: Json, refusals: list[Refusal]) -> Iterator[ServicePort]:
    for index, port in enumerate(spec.get("ports") or ()):
        protocol = _PROTOCOLS.get(port.get("protocol", "TCP"))
        if protocol is None:
            path = f"spec.ports[{index}].protocol"
            refusals.append(Refusal(path, f"{port.get('protocol')!r} is none of TCP, UDP and SCTP"))
            continue
        yield ServicePort(
            port=int(port["port"]),
            target=0,
            protocol=protocol,
            name=port.get("name") or "",
            node_port=int(port.get("nodePort") or 0),
        )


def _affinity(spec: Json) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return int(config.get("timeoutSeconds") or _DEFAULT_AFFINITY_SECONDS)


def _ipv4(addresses: Sequence[str], path: str, refusals: list[Refusal]) -> Iterator[str]:
    """Yield the IPv4 addresses; any other would make the kernel refuse everybody's rules."""
    for index, text in enumerate(addresses):
        if text in ("", "None"):
            continue
        try:
            yield str(IPv4Address(text))
        except ValueError:
            refusals.append(Refusal(f"{path}[{index}]", f"{text} is not IPv4, which alone is served"))


def _balancer_ips(item: Json, refusals: list[Refusal]) -> Iterator[str]:
    found = ((item.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    own = [entry.get("ip") or "" for entry in found if entry.get("ipMode", "VIP") == "VIP"]
    yield from _ipv4(own, "status.loadBalancer.ingress", refusals)


def _source_ranges(spec: Json, refusals: list[Refusal]) -> tuple[str, ...]:
    given = spec.get("loadBalancerSourceRanges") or ()
    ranges: list[IPv4Network] = []
    for index, text in enumerate(given):
        try:
            ranges.append(IPv4Network(str(text).strip(), strict=False))
        except ValueError:
            path = f"spec.loadBalancerSourceRanges[{index}]"
            refusals.append(Refusal(path, f"{text} is not IPv4, which alone is served"))
    if any(one.prefixlen == 0 for one in ranges):
        return ()
    return tuple(str(one) for one in ranges) or ((_NOBODY,) if given else ())


def slice_value(item: Json) -> Slice:
    """Read a slice; one of another family has no endpoints for us."""
    meta = item["metadata"]
    namespace, name = meta.get("namespace", ""), meta["name"]
    service = (meta.get("labels") or {}).get("kubernetes.io/service-name", "")
    ours = item.get("addressType") == "IPv4"
    return Slice(
        key=f"{namespace}/{name}",
        service=f"{namespace}/{service}",
        ports=tuple(_slice_ports(item)) if ours else (),
        endpoints=tuple(_slice_endpoints(item)) if ours else (),
        trigger_ns=_triggered_ns(meta),
    )


def _slice_ports(item: Json) -> Iterator[SlicePort]:
    for port in item.get("ports") or ():
        protocol = _PROTOCOLS.get(port.get("protocol") or "TCP")
        # Without a number a port stands for all, which no service can name.
        if protocol is not None and port.get("port"):
            yield SlicePort(port.get("name") or "", protocol, int(port["port"]))


def _slice_endpoints(item: Json) -> Iterator[SliceEndpoint]:
    for one in item.get("endpoints") or ():
        # "Consumers should use the first one": the others are not for us.
        address = next(_ipv4(list(one.get("addresses") or ())[:1], "", []), "")
        if not address:
            continue
        conditions, target = one.get("conditions") or {}, one.get("targetRef") or {}
        hints = one.get("hints") or {}
        # "A nil value should be interpreted as true"; that of serving is ready's.
        ready = conditions.get("ready") is not False
        serving = conditions.get("serving")
        pod = target.get("kind") == "Pod"
        yield SliceEndpoint(
            address=address,
            ready=ready,
            serving=ready if serving is None else bool(serving),
            terminating=bool(conditions.get("terminating")),
            node=one.get("nodeName") or "",
            pod_uid=str(target.get("uid") or "") if pod else "",
            pod_name=str(target.get("name") or "") if pod else "",
            hinted_zones=frozenset(h["name"] for h in hints.get("forZones") or () if h.get("name")),
            hinted_nodes=frozenset(h["name"] for h in hints.get("forNodes") or () if h.get("name")),
        )


def _triggered_ns(meta: Mapping[str, Any]) -> int:
    text = (meta.get("annotations") or {}).get(_TRIGGERED, "")
    try:
        return int(datetime.fromisoformat(text.replace("Z", "+00:00")[:35]).timestamp() * 1e9)
    except ValueError:
        return 0


def node_value(item: Json) -> Node:
    """Read a node."""
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    cidrs = spec.get("podCIDRs") or [spec.get("podCIDR") or ""]
    internal = [a.get("address", "") for a in status.get("addresses") or () if a.get("type") == "InternalIP"]
    tainted = any(taint.get("key") == _SCALED_DOWN for taint in spec.get("taints") or ())
    return Node(
        name=meta["name"],
        pod_cidrs=tuple(_networks(cidrs)),
        address=next(_ipv4(internal, "status.addresses", []), ""),
        zone=(meta.get("labels") or {}).get(_ZONE, ""),
        leaving=tainted or bool(meta.get("deletionTimestamp")),
    )


def _networks(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        try:
            yield str(IPv4Network(text))
        except ValueError:
            continue
