"""Objects of an API server as the proxy reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.proxy.adapters.cluster_objects import node_value, service_value, slice_value
from services.proxy.core.cluster import Node
from services.proxy.core.model import Protocol, Refusal, Service, ServicePort
from services.proxy.core.slices import SliceEndpoint, SlicePort

WEB = Service("u", "default", "web", "10.2.0.1", (ServicePort(80, 0, name="http", node_port=30080),), {})
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


def a_service(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Make a service of type LoadBalancer."""
    port = {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP", "nodePort": 30080}
    return {
        "metadata": {"uid": "u", "name": "web", "namespace": "default", "resourceVersion": "7"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.2.0.1", "ports": [port], **spec},
        "status": status or {},
    }


def ingress(*entries: dict[str, Any]) -> dict[str, Any]:
    """Make a load balancer's status."""
    found: list[dict[str, Any]] = list(entries)
    return {"loadBalancer": {"ingress": found}}


STICKY: dict[str, Any] = {"sessionAffinity": "ClientIP"}


@pytest.mark.parametrize(
    ("item", "changes"),
    [
        pytest.param(a_service(), {}, id="plain"),
        pytest.param(a_service(**STICKY), {"affinity_seconds": 10_800}, id="affinity-by-default"),
        pytest.param(
            a_service(**STICKY, sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}}),
            {"affinity_seconds": 60},
            id="affinity",
        ),
        pytest.param(a_service(internalTrafficPolicy="Local"), {"internal_local": True}, id="internal"),
        pytest.param(
            a_service(externalTrafficPolicy="Local", healthCheckNodePort=32000),
            {"external_local": True, "health_port": 32000},
            id="external",
        ),
        pytest.param(a_service(externalTrafficPolicy="Cluster", healthCheckNodePort=1), {}, id="no-health"),
        pytest.param(
            a_service(externalIPs=["192.0.2.9"]), {"external_ips": ("192.0.2.9",)}, id="external-ip"
        ),
        pytest.param(
            a_service(
                ingress({"ip": "192.0.2.5"}, {"ip": "192.0.2.6", "ipMode": "Proxy"}, {"hostname": "x"})
            ),
            {"balancer_ips": ("192.0.2.5",)},
            id="ingress",
        ),
        pytest.param(
            a_service(loadBalancerSourceRanges=["10.0.0.0/8", " 192.0.2.0/24"]),
            {"source_ranges": ("10.0.0.0/8", "192.0.2.0/24")},
            id="ranges",
        ),
        pytest.param(a_service(loadBalancerSourceRanges=["0.0.0.0/0"]), {}, id="anyone"),
        pytest.param(a_service(type="ExternalName", clusterIP=""), {"cluster_ip": ""}, id="external-name"),
        pytest.param(a_service(clusterIP="None"), {"cluster_ip": ""}, id="headless"),
    ],
)
def test_each_field_of_a_service_is_read(item: dict[str, Any], changes: dict[str, Any]) -> None:
    """What is not given is as the API's default."""
    assert service_value(item) == replace(WEB, revision=7, **changes)


@pytest.mark.parametrize(
    ("item", "path", "why"),
    [
        (a_service(clusterIPs=["10.2.0.1", "fd00::1"]), "spec.clusterIPs[1]", "fd00::1 is not IPv4"),
        (a_service(externalIPs=["fd00::2"]), "spec.externalIPs[0]", "fd00::2 is not IPv4"),
        (a_service(ingress({"ip": "fd00::3"})), "status.loadBalancer.ingress[0]", "fd00::3 is not IPv4"),
        (
            a_service(ports=[{"port": 80, "protocol": "DCCP"}]),
            "spec.ports[0].protocol",
            "'DCCP' is none of TCP, UDP and SCTP",
        ),
        (
            a_service(loadBalancerSourceRanges=["fd00::/8"]),
            "spec.loadBalancerSourceRanges[0]",
            "fd00::/8 is not IPv4",
        ),
    ],
)
def test_what_is_not_honoured_is_told_with_its_path(item: dict[str, Any], path: str, why: str) -> None:
    """And never brings a rule that the kernel would refuse."""
    (refusal,) = service_value(item).refusals

    assert refusal.path == path
    assert refusal.why.startswith(why)


def test_ranges_of_the_other_family_alone_let_nobody_in() -> None:
    """A guard that cannot be kept must not be an open door."""
    read = service_value(a_service(loadBalancerSourceRanges=["fd00::/8"]))

    assert read.source_ranges == ("255.255.255.255/32",)
    assert isinstance(read.refusals[0], Refusal)


def a_slice(*endpoints: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Make a slice."""
    return {
        "metadata": {
            "name": "web-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {TRIGGER: "2026-11-30T08:00:00.5Z"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "all"}],
        "endpoints": list(endpoints),
        **values,
    }


POD = {"kind": "Pod", "uid": "u1", "name": "web-1"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, SliceEndpoint("10.1.0.1"), id="nil-is-ready"),
        pytest.param(
            {"conditions": {"ready": False}},
            SliceEndpoint("10.1.0.1", ready=False, serving=False),
            id="serving-is-as-ready",
        ),
        pytest.param(
            {"conditions": {"ready": False, "serving": True, "terminating": True}},
            SliceEndpoint("10.1.0.1", ready=False, serving=True, terminating=True),
            id="stopping",
        ),
        pytest.param(
            {"nodeName": "a", "targetRef": POD},
            SliceEndpoint("10.1.0.1", node="a", pod_uid="u1", pod_name="web-1"),
            id="a-pod",
        ),
        pytest.param(
            {"targetRef": {"kind": "VM", "name": "x", "uid": "y"}}, SliceEndpoint("10.1.0.1"), id="no-pod"
        ),
        pytest.param(
            {"hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "a"}]}},
            SliceEndpoint("10.1.0.1", hinted_zones=frozenset("z"), hinted_nodes=frozenset("a")),
            id="hints",
        ),
    ],
)
def test_an_endpoint_is_read_with_what_is_not_given(given: dict[str, Any], expected: SliceEndpoint) -> None:
    """Absent conditions mean something, and not always false."""
    read = slice_value(a_slice({"addresses": ["10.1.0.1", "10.1.0.2"], **given}))

    assert read.endpoints == (expected,)


def test_a_slice_is_read() -> None:
    """A port without a number stands for no port of a service; the time is in nanoseconds."""
    read = slice_value(a_slice())

    assert (read.key, read.service) == ("default/web-1", "default/web")
    assert read.ports == (SlicePort("http", Protocol.TCP, 8080),)
    assert read.trigger_ns == 1_796_025_600_500_000_000


@pytest.mark.parametrize(
    "item",
    [
        a_slice({"addresses": ["fd00::1"]}, addressType="IPv6"),
        a_slice({"addresses": ["fd00::1"]}),
        a_slice({"addresses": []}),
        a_slice(endpoints=None, ports=None),
    ],
)
def test_an_address_that_is_not_ipv4_is_passed_over(item: dict[str, Any]) -> None:
    """One such would have every rule refused."""
    assert slice_value(item).endpoints == ()


def test_a_node_is_read() -> None:
    """Its networks and addresses of IPv4 alone."""
    item = {
        "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"podCIDRs": ["10.1.0.0/24", "fd00::/64"], "taints": [{"key": "other"}]},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "192.0.2.1"},
            ]
        },
    }

    assert node_value(item) == Node("a", ("10.1.0.0/24",), "192.0.2.1", "z")
    item["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler"}]  # type: ignore[index]  # mixed
    assert node_value(item).leaving
    assert node_value({"metadata": {"name": "new"}}) == Node("new")
