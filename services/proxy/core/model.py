"""The proxy's values: services and pods as watched, endpoints as decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Protocol(Enum):
    """Transport protocol; the value is nftables' name."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service. `target` is a number, or the name of a container port."""

    port: int
    target: int | str
    protocol: Protocol = Protocol.TCP
    name: str = ""
    node_port: int = 0


class Refusal(NamedTuple):
    """A field that a service sets and that is not honoured, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Service:
    """A service. `cluster_ip` is empty for a headless one.

    `affinity_seconds` is how long a client stays with one endpoint, 0 for not at all. `balancer_ips` are
    those of a load balancer's addresses that this node answers itself; `source_ranges` say who may use
    them, anyone when there are none. `health_port` tells a load balancer whether this node has endpoints.
    """

    uid: str
    namespace: str
    name: str
    cluster_ip: str
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    publish_not_ready: bool = False
    revision: int = 0
    affinity_seconds: int = 0
    external_local: bool = False
    internal_local: bool = False
    external_ips: tuple[str, ...] = ()
    balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    health_port: int = 0
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a pod declares."""

    number: int
    name: str = ""
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `address` is empty until it has one; `ended` once all its containers have ended for good."""

    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    address: str = ""
    ready: bool = False
    serving: bool = False
    terminating: bool = False
    ended: bool = False
    ports: tuple[ContainerPort, ...] = ()


class Endpoint(NamedTuple):
    """A pod's place behind one port of a service, and why traffic goes there or not.

    `here` tells that it is on this node, and `used_here` that traffic which must stay on this node
    goes there. There are tens of thousands; a tuple is made four times as fast as a frozen dataclass.
    """

    pod_uid: str
    pod_name: str
    address: str
    port: int
    used: bool
    ready: bool
    serving: bool
    terminating: bool
    reason: str
    message: str
    here: bool = True
    used_here: bool = False


@dataclass(frozen=True, slots=True)
class PortDecision:
    """Where one port of a service leads: every matching pod, used or not."""

    port: ServicePort
    endpoints: tuple[Endpoint, ...]

    def used(self) -> tuple[Endpoint, ...]:
        """Return the endpoints that get traffic."""
        return tuple([endpoint for endpoint in self.endpoints if endpoint.used])

    def used_here(self) -> tuple[Endpoint, ...]:
        """Return those that get the traffic which must stay on this node."""
        return tuple([endpoint for endpoint in self.endpoints if endpoint.used_here])


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a service leads."""

    service: Service
    ports: tuple[PortDecision, ...]
