"""Judge switches, firewall and routes: can a packet reach a pod?"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from cli.doctor.facts import NetworkFacts
from cli.doctor.finding import Finding, broken, ok, unseen, warn

_FULL, _NEARLY_FULL = 0.98, 0.80


def judge(facts: NetworkFacts) -> Iterator[Finding]:
    """Say what keeps packets from pods."""
    yield from _switches(facts)
    yield _forward(facts)
    yield _conntrack(facts)
    yield from _routes(facts)


def _switches(facts: NetworkFacts) -> Iterator[Finding]:
    if facts.ip_forward is None:
        yield unseen("ip_forward", "/proc/sys/net cannot be read")
    elif facts.ip_forward:
        yield ok("ip_forward is on")
    else:
        level = broken if facts.bridge_exists else warn
        yield level(
            "ip_forward is off",
            "No packet leaves the pods' bridge. The kubelet turns it on when it starts.",
            "sysctl -w net.ipv4.ip_forward=1",
        )
    if facts.bridge_netfilter:
        yield ok("br_netfilter passes bridged packets to iptables")
    elif facts.bridge_netfilter is None:
        yield warn(
            "br_netfilter is not loaded",
            "A pod that calls a service whose pod is on the same bridge hangs.",
            "modprobe br_netfilter && echo br_netfilter >/etc/modules-load.d/tripod.conf",
        )
    else:
        yield warn(
            "bridge-nf-call-iptables is 0",
            "A pod that calls a service whose pod is on the same bridge hangs.",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1",
        )
    if facts.route_localnet:
        yield warn(
            f"route_localnet is 1 for {', '.join(facts.route_localnet)}",
            "Neighbours can reach what listens on 127.0.0.1 (CVE-2020-8558). Tripod does not need it.",
            f"sysctl -w net.ipv4.conf.{facts.route_localnet[0]}.route_localnet=0",
        )
    else:
        yield ok("route_localnet is 0 everywhere")


def _forward(facts: NetworkFacts) -> Finding:
    if not facts.iptables:
        return unseen("FORWARD chain", "iptables is not installed", "apt-get install iptables")
    if facts.forward is None:
        return unseen("FORWARD chain", "listing rules needs CAP_NET_ADMIN")
    drops = "-P FORWARD DROP" in facts.forward
    chain = f"{facts.settings.chain_prefix}-FORWARD"
    jumps = f"-A FORWARD -j {chain}" in facts.forward
    if not drops:
        return ok("FORWARD accepts by default" + (f", with {chain}" if jumps else ""))
    if jumps:
        return ok(f"FORWARD drops by default, and {chain} accepts what is ours")
    if facts.bridge_exists:
        return broken(
            f"FORWARD drops by default, and does not jump to {chain}",
            "Packets from and to pods are dropped. The kubelet mends it within seconds while it runs.",
            f"iptables -A FORWARD -j {chain} (or restart the kubelet)",
        )
    return ok(f"FORWARD drops by default; the kubelet adds {chain} when it starts")


def _conntrack(facts: NetworkFacts) -> Finding:
    count, limit = facts.conntrack_count, facts.conntrack_limit
    if count is None or not limit:
        return unseen(
            "Connection tracking", "its counters cannot be read (the module may not be loaded yet)", ""
        )
    what = f"{count} of {limit} tracked connections"
    why = "New connections are dropped when the table is full."
    fix = f"sysctl -w net.netfilter.nf_conntrack_max={limit * 2}"
    if count >= limit * _FULL:
        return broken(what, why, fix)
    return warn(what, why, fix) if count >= limit * _NEARLY_FULL else ok(what)


def _routes(facts: NetworkFacts) -> Iterator[Finding]:
    for name, cidr in (("pod", facts.settings.pod_cidr), ("service", facts.settings.service_cidr)):
        ours = ip_network(cidr)
        rivals = [
            (route, ip_network(route.destination))
            for route in facts.routes
            if route.device != facts.settings.bridge and ip_network(route.destination).overlaps(ours)
        ]
        if not rivals:
            yield ok(f"No rival route for {name} addresses {cidr}")
        for route, network in rivals:
            inside = network.prefixlen >= ours.prefixlen
            yield (broken if inside and name == "pod" else warn)(
                f"Route {route.destination} via {route.device} overlaps the {name} addresses {cidr}",
                "Packets go there instead."
                if inside
                else f"Hosts there with addresses of {cidr} are hidden.",
                f"Choose other addresses: TRIPOD_{name.upper()}_CIDR, for kubelet and proxy alike.",
            )
