"""Ports of containers in a manifest, and the node's ports that lead to them. Pure.

Source: Kubernetes API reference, `ContainerPort` v1. A pod on the host's network has the port itself, so a
host port, when it is given, is the same one; each port of such a pod is a host port.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from services.kubelet.core.fields import PORT_NAME, Faults, Fields
from services.kubelet.core.manifest_probe import MAX_PORT
from services.kubelet.core.model import Container, ContainerPort, Protocol


def read_port(value: Any, path: str, faults: Faults) -> ContainerPort:
    """Read one port."""
    fields = Fields(
        value, path, faults, known=("containerPort", "name", "protocol", "hostPort", "hostIP"), later={}
    )
    number = fields.whole("containerPort", 1, low=1, high=MAX_PORT, required=True)
    name = fields.text("name", form=PORT_NAME, what="a port name: up to 15 of a-z, 0-9 and '-'")
    protocol = read_protocol(fields)
    host_port = fields.whole("hostPort", 0, low=0, high=MAX_PORT)
    return ContainerPort(number, name, protocol, host_port, _host_ip(fields))


def _host_ip(fields: Fields) -> str:
    text = fields.text("hostIP")
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        fields.fault("hostIP", f"{text!r} is no IP address")
        return ""


def read_protocol(fields: Fields) -> Protocol:
    """Read `protocol`."""
    return Protocol(fields.text("protocol", "TCP", choices=[p.value for p in Protocol]))


def read_host_ports(
    containers: tuple[Container, ...], path: str, faults: Faults, *, host_network: bool
) -> tuple[Container, ...]:
    """Complete the host ports of the containers at `path`, and see that none is asked for twice."""
    taken: set[tuple[Protocol, str, int]] = set()
    found = []
    for index, container in enumerate(containers):
        ports = []
        for number, port in enumerate(container.ports):
            place = f"{path}[{index}].ports[{number}].hostPort"
            made = replace(port, host_port=port.host_port or port.container_port) if host_network else port
            if host_network and made.host_port != made.container_port:
                faults.add(place, "must be the containerPort while hostNetwork is true")
            key = (made.protocol, made.host_ip or "0.0.0.0", made.host_port)
            if made.host_port and key in taken:
                faults.add(place, f"{made.host_port}/{made.protocol.value} stands twice")
            taken.add(key)
            ports.append(made)
        found.append(replace(container, ports=tuple(ports)))
    return tuple(found)
