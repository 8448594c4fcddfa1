"""The spec of a service: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `ServiceSpec` v1.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from services.kubelet.core.fields import DNS_LABEL, PORT_NAME, Faults, Fields, label_value_fault
from services.kubelet.core.manifest_ports import read_protocol
from services.kubelet.core.manifest_probe import MAX_PORT
from services.kubelet.core.model import ServicePort, ServiceType

HEADLESS = "None"
DEFAULT_AFFINITY_SECONDS, MAX_AFFINITY_SECONDS = 10_800, 86_400
_LATER: dict[str, tuple[Any, ...]] = {
    "allocateLoadBalancerNodePorts": (),
    "clusterIPs": (),
    "externalIPs": ([],),
    "externalName": ("",),
    "healthCheckNodePort": (0,),
    "ipFamilies": (["IPv4"],),
    "ipFamilyPolicy": ("SingleStack",),
    "loadBalancerClass": (),
    "loadBalancerIP": ("",),
    "loadBalancerSourceRanges": ([],),
    "trafficDistribution": (),
}


@dataclass(frozen=True, slots=True)
class ServiceDraft:
    """A service before it has its addresses. `cluster_ip` is empty to ask for one; a node port is 0."""

    type: ServiceType
    cluster_ip: str
    ports: tuple[ServicePort, ...]
    selector: dict[str, str]
    affinity_timeout_seconds: int = 0
    publish_not_ready_addresses: bool = False
    external_traffic_local: bool = False
    internal_traffic_local: bool = False


def read_service_spec(value: Any, faults: Faults) -> ServiceDraft:
    """Read and check a service's spec."""
    spec = Fields(
        value,
        "spec",
        faults,
        known=[
            "type",
            "clusterIP",
            "ports",
            "selector",
            "publishNotReadyAddresses",
            "externalTrafficPolicy",
            "internalTrafficPolicy",
            "sessionAffinity",
            "sessionAffinityConfig",
        ],
        later=_LATER,
    )
    kind = _type(spec)
    cluster_ip = _cluster_ip(spec)
    if cluster_ip == HEADLESS and kind is ServiceType.NODE_PORT:
        spec.fault("clusterIP", "None needs type ClusterIP")
    selector = spec.mapping("selector", values=label_value_fault)
    if not selector:
        spec.fault("selector", "is required: without one nothing would ever stand behind the service")
    return ServiceDraft(
        type=kind,
        cluster_ip=cluster_ip,
        ports=_ports(spec, kind, headless=cluster_ip == HEADLESS),
        selector=selector,
        affinity_timeout_seconds=_affinity(spec),
        publish_not_ready_addresses=spec.flag("publishNotReadyAddresses"),
        external_traffic_local=_local(spec, "externalTrafficPolicy"),
        internal_traffic_local=_local(spec, "internalTrafficPolicy"),
    )


def _type(spec: Fields) -> ServiceType:
    if spec.raw("type") in ("LoadBalancer", "ExternalName"):
        spec.fault("type", "not supported yet")
        return ServiceType.CLUSTER_IP
    return ServiceType(spec.text("type", "ClusterIP", choices=[t.value for t in ServiceType]))


def _cluster_ip(spec: Fields) -> str:
    value = spec.text("clusterIP")
    if value in ("", HEADLESS):
        return value
    try:
        return str(IPv4Address(value))
    except ValueError:
        spec.fault("clusterIP", f"{value!r} is neither an IPv4 address nor None")
        return ""


def _affinity(spec: Fields) -> int:
    """Return how long a client stays with one endpoint, 0 for not at all."""
    sticky = spec.text("sessionAffinity", "None", choices=("None", "ClientIP")) == "ClientIP"
    if not spec.has("sessionAffinityConfig"):
        return DEFAULT_AFFINITY_SECONDS if sticky else 0
    if not sticky:
        spec.fault("sessionAffinityConfig", "needs sessionAffinity: ClientIP")
    config = _part(spec, "sessionAffinityConfig", known=("clientIP",))
    client = _part(config, "clientIP", known=("timeoutSeconds",))
    seconds = client.whole("timeoutSeconds", DEFAULT_AFFINITY_SECONDS, low=1, high=MAX_AFFINITY_SECONDS)
    return seconds if sticky else 0


def _part(fields: Fields, name: str, *, known: tuple[str, ...]) -> Fields:
    value = fields.raw(name) if fields.has(name) else {}
    return Fields(value, fields.at(name), fields.faults, known=known)


def _local(spec: Fields, name: str) -> bool:
    return spec.text(name, "Cluster", choices=("Cluster", "Local")) == "Local"


def _ports(spec: Fields, kind: ServiceType, *, headless: bool) -> tuple[ServicePort, ...]:
    items = spec.items("ports", required=not headless)
    found = tuple(_port(value, path, spec.faults, kind, many=len(items) > 1) for value, path in items)
    names = [port.name for port in found if port.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        spec.fault("ports", f"the name {name!r} stands twice")
    places = [(port.protocol.value, port.port) for port in found]
    for protocol, number in sorted({place for place in places if places.count(place) > 1}):
        spec.fault("ports", f"{number}/{protocol} stands twice")
    return found


def _port(value: Any, path: str, faults: Faults, kind: ServiceType, *, many: bool) -> ServicePort:
    fields = Fields(
        value,
        path,
        faults,
        known=("name", "protocol", "port", "targetPort", "nodePort"),
        later={"appProtocol": ()},
    )
    number = fields.whole("port", 1, low=1, high=MAX_PORT, required=True)
    name = fields.text("name", required=many, form=DNS_LABEL, what="a DNS label")
    node_port = fields.whole("nodePort", 0, low=0, high=MAX_PORT)
    if node_port and kind is not ServiceType.NODE_PORT:
        fields.fault("nodePort", "needs type NodePort")
    return ServicePort(number, _target(fields, number), name, read_protocol(fields), node_port)


def _target(fields: Fields, default: int) -> int | str:
    value = fields.raw("targetPort")
    if isinstance(value, str):
        return fields.text("targetPort", form=PORT_NAME, what="a port number or the name of a container port")
    return fields.whole("targetPort", default, low=1, high=MAX_PORT)
