"""Ports of the host that lead to a sandbox: read from a request, kept in a record, written as rules. Pure.

Source: the CRI's `PortMapping`: a host port of 0 means none. Packets from outside and from the host itself
are sent on by the kernel; those from 127.0.0.1 cannot be, without opening the host's loopback to its
neighbours, so `LocalForwarder` serves them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.errors import invalid
from services.kubelet.cri.network.rules import Chain

_PROTOCOLS: Final = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}
_ANY: Final = ("", "0.0.0.0")
_LOOPBACK: Final = "127.0.0.0/8"
_LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """One port of the host, on one address or on all, and the sandbox's port that it leads to."""

    protocol: str
    host_ip: str
    host_port: int
    port: int

    @property
    def is_local(self) -> bool:
        """Whether 127.0.0.1 serves it."""
        return self.protocol != "sctp" and self.host_ip in (*_ANY, "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Goal:
    """A place in a sandbox. Implements `localports.Target`."""

    address: str
    port: int


Published = Mapping[str, tuple[str, tuple[PublishedPort, ...]]]
"""Sandbox id -> its address and its ports."""


def encode(mappings: Sequence[pb.PortMapping]) -> str:
    """Write the ports that are asked for as a record keeps them. Raises REQUEST_INVALID."""
    return ",".join(_encoded(mapping) for mapping in mappings if mapping.host_port)


def _encoded(mapping: pb.PortMapping) -> str:
    for name in ("host_port", "container_port"):
        if not 1 <= getattr(mapping, name) <= _LAST_PORT:
            raise invalid(f"config.port_mappings.{name}", f"{getattr(mapping, name)} is no port")
    if mapping.host_ip:
        try:
            version = ip_address(mapping.host_ip).version
        except ValueError as error:
            raise invalid("config.port_mappings.host_ip", f"{mapping.host_ip!r} is no address") from error
        if version != 4:  # The pod network has no other addresses.
            raise invalid("config.port_mappings.host_ip", f"{mapping.host_ip} is not IPv4")
    protocol = _PROTOCOLS.get(mapping.protocol, "tcp")
    return f"{protocol}/{mapping.host_ip}/{mapping.host_port}/{mapping.container_port}"


def decode(text: str) -> tuple[PublishedPort, ...]:
    """Read what `encode` wrote."""
    parts = (item.split("/") for item in text.split(",") if item)
    return tuple(PublishedPort(p, ip, int(host), int(port)) for p, ip, host, port in parts)


def conflict(published: Published, sandbox_id: str, wanted: Iterable[PublishedPort]) -> PublishedPort | None:
    """Return the first wanted port that another sandbox has."""
    taken = [port for other, (_, ports) in published.items() if other != sandbox_id for port in ports]
    return next((port for port in wanted if any(_clash(port, other) for other in taken)), None)


def _clash(one: PublishedPort, other: PublishedPort) -> bool:
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    return one.host_ip == other.host_ip or one.host_ip in _ANY or other.host_ip in _ANY


def local(published: Published) -> dict[tuple[str, int], list[Goal]]:
    """Return what 127.0.0.1 serves."""
    return {
        (port.protocol, port.host_port): [Goal(address, port.port)]
        for address, ports in published.values()
        for port in ports
        if port.is_local
    }


def chains(prefix: str, published: Published) -> tuple[Chain, Chain]:
    """Return the chains for packets from outside and for those of the host's own."""
    found = [(address, port) for _, (address, ports) in sorted(published.items()) for port in ports]
    inward = tuple(_rule(address, port, "") for address, port in found if port.host_ip != "127.0.0.1")
    own = tuple(_rule(address, port, f"! -d {_LOOPBACK} ") for address, port in found if port.host_ip in _ANY)
    own += tuple(
        _rule(address, port, "")
        for address, port in found
        if port.host_ip not in _ANY and not ip_address(port.host_ip).is_loopback
    )
    return (
        Chain("nat", "PREROUTING", f"{prefix}-PORTS-IN", inward),
        Chain("nat", "OUTPUT", f"{prefix}-PORTS-OWN", own),
    )


def _rule(address: str, port: PublishedPort, restriction: str) -> str:
    place = f"-d {port.host_ip}/32 " if port.host_ip not in _ANY else restriction
    local_only = "-m addrtype --dst-type LOCAL " if port.host_ip in _ANY else ""
    match = f"-m {port.protocol} --dport {port.host_port}"
    return f"{place}-p {port.protocol} {local_only}{match} -j DNAT --to-destination {address}:{port.port}"
