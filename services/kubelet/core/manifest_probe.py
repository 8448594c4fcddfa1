"""The probes of a container: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `Probe` v1.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

from services.kubelet.core.fields import DNS_SUBDOMAIN, Faults, Fields, control_fault
from services.kubelet.core.model import (
    ContainerPort,
    ExecAction,
    GrpcCheck,
    HttpGet,
    Probe,
    ProbeAction,
    TcpSocket,
)

MAX_PORT = 65_535
MAX_SECONDS = 2**31 - 1
_HEADER = re.compile(r"[-A-Za-z0-9]+")


def read_probe(container: Fields, name: str, ports: tuple[ContainerPort, ...]) -> Probe | None:
    """Read the probe of that name; None when there is none."""
    if not container.has(name):
        return None
    fields = Fields(
        container.raw(name),
        container.at(name),
        container.faults,
        known=[
            "httpGet",
            "tcpSocket",
            "exec",
            "grpc",
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "successThreshold",
            "failureThreshold",
            *(() if name == "readinessProbe" else ("terminationGracePeriodSeconds",)),
        ],
        # Nothing ends for a readiness probe.
        later={"terminationGracePeriodSeconds": ()},
    )
    success = fields.whole("successThreshold", 1, low=1, high=MAX_SECONDS)
    if name != "readinessProbe" and success != 1:
        fields.fault("successThreshold", f"must be 1 for a {name.removesuffix('Probe')} probe")
    action = _action(fields, ports)
    if action is None:
        return None
    return Probe(
        action=action,
        initial_delay_seconds=fields.whole("initialDelaySeconds", 0, low=0, high=MAX_SECONDS),
        period_seconds=fields.whole("periodSeconds", 10, low=1, high=MAX_SECONDS),
        timeout_seconds=fields.whole("timeoutSeconds", 1, low=1, high=MAX_SECONDS),
        success_threshold=success,
        failure_threshold=fields.whole("failureThreshold", 3, low=1, high=MAX_SECONDS),
        termination_grace_period_seconds=_grace(fields),
    )


def _grace(probe: Fields) -> int | None:
    name = "terminationGracePeriodSeconds"
    return probe.whole(name, 1, low=1, high=MAX_SECONDS) if probe.has(name) else None


def _action(probe: Fields, ports: tuple[ContainerPort, ...]) -> ProbeAction | None:
    given = [name for name in ("httpGet", "tcpSocket", "exec", "grpc") if probe.has(name)]
    if len(given) != 1:
        several = f"has {'two' if len(given) == 2 else len(given)} actions: {' and '.join(given)}"
        probe.faults.add(probe.path, several if given else "give one of httpGet, tcpSocket, exec or grpc")
        return None
    value, path = probe.raw(given[0]), probe.at(given[0])
    if given[0] == "exec":
        return read_exec(probe)
    if given[0] == "tcpSocket":
        fields = Fields(value, path, probe.faults, known=("port", "host"))
        return TcpSocket(_target(fields, ports), _host(fields))
    if given[0] == "grpc":
        fields = Fields(value, path, probe.faults, known=("port", "service"))
        return GrpcCheck(fields.whole("port", 0, low=1, high=MAX_PORT, required=True), fields.text("service"))
    return read_http_get(probe, ports)


def read_exec(action: Fields) -> ExecAction:
    """Read `exec` of a probe or a hook that has one."""
    fields = Fields(action.raw("exec"), action.at("exec"), action.faults, known=("command",))
    command = fields.texts("command")
    if not command:
        fields.fault("command", "needs one item at least")
    return ExecAction(command)


def read_http_get(action: Fields, ports: tuple[ContainerPort, ...]) -> HttpGet:
    """Read `httpGet` of a probe or a hook that has one."""
    known = ("port", "path", "scheme", "host", "httpHeaders")
    fields = Fields(action.raw("httpGet"), action.at("httpGet"), action.faults, known=known)
    return HttpGet(
        port=_target(fields, ports),
        path=_url_path(fields),
        scheme=fields.text("scheme", "HTTP", choices=("HTTP", "HTTPS")),
        host=_host(fields),
        headers=tuple(_header(item, place, fields.faults) for item, place in fields.items("httpHeaders")),
    )


def _url_path(action: Fields) -> str:
    path = action.text("path", "/")
    if wrong := control_fault(path):
        action.fault("path", wrong)
    return path


def _host(action: Fields) -> str:
    """Read `host`. The node's own addresses reach what no pod may ask for (CVE-2022-3294)."""
    host = action.text("host")
    try:
        address = ip_address(host)
    except ValueError:
        if host and (not DNS_SUBDOMAIN.fullmatch(host) or host == "localhost"):
            action.fault("host", f"{host!r} is neither an address nor the name of another host")
    else:
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            action.fault("host", f"{host} is an address of the node itself or of its link")
    return host


def _header(value: Any, path: str, faults: Faults) -> tuple[str, str]:
    fields = Fields(value, path, faults, known=("name", "value"))
    name = fields.text("name", required=True, form=_HEADER, what="a header's name")
    text = fields.text("value")
    if wrong := control_fault(text):
        fields.fault("value", wrong)
    return name, text


def _target(fields: Fields, ports: tuple[ContainerPort, ...]) -> int | str:
    value = fields.raw("port")
    if isinstance(value, str):
        if all(port.name != value for port in ports):
            fields.fault("port", f"no port of the container is called {value!r}")
        return value
    return fields.whole("port", 1, low=1, high=MAX_PORT, required=True)
