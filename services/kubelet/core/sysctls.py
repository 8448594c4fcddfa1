"""Which kernel settings a pod may have. Pure.

A setting must belong to a namespace that the pod has for itself: its network or its IPC. Of those some are
safe, since they can neither harm nor starve other pods; the others a node must allow by name or by prefix.

Source: Kubernetes "Using sysctls in a Kubernetes Cluster", as of 1.37; the kubelet's `sysctl/allowlist.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.kubelet.core.security import HostNamespaces

NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*")
# CVE-2022-0811: a '+' once made one setting two.
VALUE = re.compile(r"[-0-9A-Za-z ._:,/\t]{0,4096}")
PATTERN = re.compile(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*([./]?\*)?")
SAFE = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
_IPC = ("kernel.shm", "kernel.msg", "fs.mqueue.")


def normal(name: str) -> str:
    """Write a name with dots; with slashes its parts may hold dots, as names of links do."""
    first = re.search(r"[./]", name)
    return name if first is None or first.group() == "." else name.translate(str.maketrans("./", "/."))


def namespace(name: str) -> str:
    """Return the namespace that a setting belongs to: "net", "ipc", or "" for the whole host's."""
    if name.startswith("net."):
        return "net"
    return "ipc" if name == "kernel.sem" or name.startswith(_IPC) else ""


def pattern_fault(pattern: str) -> str:
    """Say why a node cannot allow a setting; "" when it can."""
    if not PATTERN.fullmatch(pattern):
        return f"{pattern!r} is neither the name of a sysctl nor a prefix with '*'"
    return "" if namespace(normal(pattern).rstrip("*")) else f"{pattern!r} is the whole host's, not a pod's"


def refusal(names: Iterable[str], namespaces: HostNamespaces, allowed: Iterable[str]) -> str:
    """Say which setting is forbidden and why, in the original's words; "" when none is."""
    patterns = [normal(pattern) for pattern in allowed]
    for name in names:
        wrong = _fault(normal(name), namespaces, patterns)
        if wrong:
            return f"forbidden sysctl: {wrong}"
    return ""


def _fault(name: str, namespaces: HostNamespaces, patterns: Iterable[str]) -> str:
    if name not in SAFE and not any(_matches(name, pattern) for pattern in patterns):
        return f'"{name}" not allowlisted'
    hosts = {"net": namespaces.network, "ipc": namespaces.ipc}
    kind = namespace(name)
    return f'"{name}" not allowed with host {kind} enabled' if hosts.get(kind) else ""


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
