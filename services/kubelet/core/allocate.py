"""Give services their addresses and node ports. Pure.

What a service has, it keeps; what it asks for, it gets when it is free and in
range; the rest is taken in order from a start that follows from its name, so that
the same manifest gets the same addresses on an empty node.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from services.common.errors import FieldViolation
from services.kubelet.core.manifest_service import HEADLESS, ServiceDraft
from services.kubelet.core.model import Protocol, ServicePort, ServiceType


@dataclass(frozen=True, slots=True)
class Ranges:
    """What may be given: addresses of `cidr`, ports from `first_port` to `last_port`."""

    cidr: IPv4Network
    first_port: int = 30_000
    last_port: int = 32_767


@dataclass(frozen=True, slots=True)
class Taken:
    """What other services have."""

    addresses: Collection[str]
    node_ports: Collection[tuple[Protocol, int]]


def allocate(
    draft: ServiceDraft, name: str, ranges: Ranges, taken: Taken, *, present: ServiceDraft | None, path: str
) -> tuple[ServiceDraft, list[FieldViolation]]:
    """Complete a draft. `present` is what the service has now. Returns the faults of what it asks for."""
    faults: list[FieldViolation] = []
    address = _address(draft, name, ranges, taken, present, faults)
    ports = _node_ports(draft, name, ranges, taken, present, faults)
    located = [FieldViolation(f"{path}: {fault.field}", fault.description) for fault in faults]
    return replace(draft, cluster_ip=address, ports=ports), located


def _address(
    draft: ServiceDraft,
    name: str,
    ranges: Ranges,
    taken: Taken,
    present: ServiceDraft | None,
    faults: list[FieldViolation],
) -> str:
    if draft.cluster_ip == HEADLESS:
        return HEADLESS
    if (
        present is not None
        and draft.cluster_ip in ("", present.cluster_ip)
        and present.cluster_ip != HEADLESS
    ):
        return present.cluster_ip
    if draft.cluster_ip:
        if IPv4Address(draft.cluster_ip) not in ranges.cidr:
            faults.append(FieldViolation("spec.clusterIP", f"{draft.cluster_ip} is not in {ranges.cidr}"))
        elif draft.cluster_ip in taken.addresses:
            faults.append(FieldViolation("spec.clusterIP", f"{draft.cluster_ip} belongs to another service"))
        return draft.cluster_ip
    count = ranges.cidr.num_addresses - 2
    start = zlib.crc32(name.encode()) % count
    for step in range(count):
        address = str(ranges.cidr[1 + (start + step) % count])
        if address not in taken.addresses:
            return address
    faults.append(FieldViolation("spec.clusterIP", f"all {count} addresses of {ranges.cidr} are taken"))
    return ""


def _node_ports(
    draft: ServiceDraft,
    name: str,
    ranges: Ranges,
    taken: Taken,
    present: ServiceDraft | None,
    faults: list[FieldViolation],
) -> tuple[ServicePort, ...]:
    if draft.type is not ServiceType.NODE_PORT:
        return tuple(replace(port, node_port=0) for port in draft.ports)
    had = {(p.protocol, p.port): p.node_port for p in present.ports} if present else {}
    used = {*taken.node_ports, *((p.protocol, p.node_port) for p in draft.ports if p.node_port)}
    found = []
    for index, port in enumerate(draft.ports):
        number = port.node_port
        if number:
            what = _port_fault(port, ranges, taken)
            if what:
                faults.append(FieldViolation(f"spec.ports[{index}].nodePort", what))
        else:
            kept = had.get((port.protocol, port.port), 0)
            number = kept if kept and (port.protocol, kept) not in used else _free(port, name, ranges, used)
            if not number:
                faults.append(FieldViolation(f"spec.ports[{index}].nodePort", "every node port is taken"))
            used.add((port.protocol, number))
        found.append(replace(port, node_port=number))
    return tuple(found)


def _port_fault(port: ServicePort, ranges: Ranges, taken: Taken) -> str:
    if not ranges.first_port <= port.node_port <= ranges.last_port:
        return f"{port.node_port} is not from {ranges.first_port} to {ranges.last_port}"
    if (port.protocol, port.node_port) in taken.node_ports:
        return f"{port.node_port}/{port.protocol.value} belongs to another service"
    return ""


def _free(port: ServicePort, name: str, ranges: Ranges, used: Collection[tuple[Protocol, int]]) -> int:
    count = ranges.last_port - ranges.first_port + 1
    start = zlib.crc32(f"{name}/{port.port}/{port.protocol.value}".encode()) % count
    candidates = (ranges.first_port + (start + step) % count for step in range(count))
    return next((number for number in candidates if (port.protocol, number) not in used), 0)
