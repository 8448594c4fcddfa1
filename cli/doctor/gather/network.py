"""Read switches, the firewall, tracked connections and routes."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from cli.doctor.facts import NetworkFacts, Route, Settings
from cli.doctor.gather import host

_NET = Path("/proc/sys/net")


def gather(settings: Settings) -> NetworkFacts:
    """Look at the host's network."""
    return NetworkFacts(
        settings=settings,
        ip_forward=_switch(_NET / "ipv4/ip_forward"),
        bridge_netfilter=_switch(_NET / "bridge/bridge-nf-call-iptables"),
        route_localnet=_localnet(),
        iptables=host.program("iptables") is not None,
        forward=_forward(),
        conntrack_count=host.number(_NET / "netfilter/nf_conntrack_count"),
        conntrack_limit=host.number(_NET / "netfilter/nf_conntrack_max"),
        routes=parse_routes(host.text("/proc/net/route") or ""),
        bridge_exists=Path(f"/sys/class/net/{settings.bridge}").exists(),
    )


def _switch(path: Path) -> bool | None:
    value = host.number(path)
    return None if value is None else value != 0


def _localnet() -> tuple[str, ...]:
    folders = sorted((_NET / "ipv4/conf").glob("*"))
    return tuple(folder.name for folder in folders if host.number(folder / "route_localnet"))


def _forward() -> tuple[str, ...] | None:
    # To ask a legacy iptables for a table that nobody uses would make the table.
    legacy = "legacy" in (host.output(["iptables", "--version"]) or "")
    if legacy and "filter" not in (host.text("/proc/net/ip_tables_names") or "").split():
        return None
    listed = host.output(["iptables", "-w", "2", "-S", "FORWARD"])
    return None if listed is None else tuple(listed.splitlines())


def parse_routes(table: str) -> tuple[Route, ...]:
    """Read /proc/net/route, without default routes: hexadecimal, in the machine's byte order."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and int(fields[7], 16):
            length = bin(int(fields[7], 16)).count("1")
            found.append(Route(f"{_address(fields[1])}/{length}", fields[0]))
    return tuple(found)


def _address(word: str) -> str:
    return socket.inet_ntoa(struct.pack("=I", int(word, 16)))
