"""Build what a plugin is given: its environment and its configuration. No I/O.

Source: CNI specification 1.1.0, sections 2 and 4; the conventions of CNI (capabilities); containerd and
CRI-O for the arguments that name the pod.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from services.kubelet.cri.network.cni.conf import Network, Plugin
from services.kubelet.cri.network.details import HostPort, PodDetails

INTERFACE: Final = "eth0"
VALID_ATTACHMENTS: Final = "cni.dev/valid-attachments"
INGRESS: Final = "kubernetes.io/ingress-bandwidth"
EGRESS: Final = "kubernetes.io/egress-bandwidth"
IPS: Final = "tripod.io/cni-ips"
MAC: Final = "tripod.io/cni-mac"
# Plugins run programs such as iptables.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BURST: Final = 2**31 - 1
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?)(|[kMGTPE]|[KMGTPE]i)")
_SCALE: Final = {
    "": 1,
    "k": 10**3,
    **{letter: 10 ** (3 * power) for power, letter in enumerate("MGTPE", start=2)},
    **{f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGTPE", start=1)},
}
# The bounds that Kubernetes sets.
_RATE_LIMITS: Final = (10**3, 10**15)


def arguments(pod: PodDetails, sandbox_id: str) -> str:
    """Name the pod in CNI_ARGS. Raises `ValueError` for a name that would end its field."""
    fields = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
        "K8S_POD_UID": pod.uid,
    }
    for value in fields.values():
        if any(sign in value for sign in ";=\0"):
            raise ValueError(f"{value!r} must have no ';' and no '='")
    return ";".join(f"{name}={value}" for name, value in fields.items() if value)


def capabilities(pod: PodDetails, wanted: frozenset[str]) -> dict[str, Any]:
    """Return the values of those capabilities that plugins want and the pod has. Raises `ValueError`."""
    ips = [part.strip() for part in pod.annotations.get(IPS, "").split(",")]
    known: dict[str, Any] = {
        "portMappings": [_mapping(port) for port in pod.ports if port.host_port],
        "bandwidth": _bandwidth(pod.annotations),
        "dns": _dns(pod),
        "ips": [ip for ip in ips if ip],
        "mac": pod.annotations.get(MAC, ""),
        "io.kubernetes.cri.pod-annotations": dict(pod.annotations),
    }
    return {name: value for name, value in known.items() if name in wanted and value}


def environment(
    command: str,
    folders: Sequence[Path],
    *,
    sandbox_id: str = "",
    netns: str = "",
    extra: str = "",
) -> dict[str, str]:
    """Return the whole environment of a plugin. `netns` is empty once the namespace is gone."""
    made = {"PATH": _PATH, "CNI_COMMAND": command, "CNI_PATH": ":".join(map(str, folders))}
    if sandbox_id:
        made |= {
            "CNI_CONTAINERID": sandbox_id,
            "CNI_NETNS": netns,
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": extra,
        }
    return made


def configuration(
    network: Network,
    plugin: Plugin,
    *,
    values: Mapping[str, Any] | None = None,
    previous: Mapping[str, Any] | None = None,
    valid: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what a plugin reads: its part of the network's configuration, and what is known at run time.

    `valid` are the sandboxes that GC must spare.
    """
    # "capabilities: ... the runtime must remove this key"
    made = {key: value for key, value in plugin.conf.items() if key not in ("capabilities", "prevResult")}
    made |= {"cniVersion": network.version, "name": network.name}
    given = {name: value for name, value in (values or {}).items() if name in plugin.capabilities}
    if given:
        made["runtimeConfig"] = given
    if previous is not None:
        made["prevResult"] = previous
    if valid is not None:
        made[VALID_ATTACHMENTS] = [{"containerID": name, "ifname": INTERFACE} for name in valid]
    return made


def bits(quantity: str) -> int:
    """Read a rate in bits a second, such as `10M`. Raises `ValueError` for one that Kubernetes refuses."""
    found = _QUANTITY.fullmatch(quantity)
    rate = int(Decimal(found[1]) * _SCALE[found[2]]) if found else 0
    least, most = _RATE_LIMITS
    if not least <= rate <= most:
        raise ValueError(f"{quantity!r} is no bandwidth from 1k to 1P")
    return rate


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    made: dict[str, int] = {}
    for annotation, direction in ((INGRESS, "ingress"), (EGRESS, "egress")):
        if annotation in annotations:
            made |= {f"{direction}Rate": bits(annotations[annotation]), f"{direction}Burst": _BURST}
    return made


def _mapping(port: HostPort) -> dict[str, Any]:
    return {
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol,
        **({"hostIP": port.host_ip} if port.host_ip else {}),
    }


def _dns(pod: PodDetails) -> dict[str, list[str]]:
    made = {"servers": pod.dns_servers, "searches": pod.dns_searches, "options": pod.dns_options}
    return {name: list(values) for name, values in made.items() if values}
