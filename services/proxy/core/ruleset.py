"""The kernel's rules as values, how they follow from decisions, and how to change them. Pure.

Two maps hold everything: `service-ips` leads (address, protocol, port) to the chain
for its number of endpoints, and `endpoints` leads (address, protocol, port, index)
to a pod. A node port is the same with each address of the node. So the number of
chains is that of distinct counts, and a change is a few elements in one transaction.

The index has the type of `numgen`, because nft 1.0.6 cannot list a key with a plain
integer. The second rule of a chain serves a packet whose index has just gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from services.proxy.core.model import Decision, PortDecision

Place = tuple[str, str, int]
Slot = tuple[str, str, int, int]
Target = tuple[str, int]
K = TypeVar("K", tuple[str, str, int], tuple[str, str, int, int])
# Source: netfilter hook priorities: dstnat -100, filter 0, srcnat 100.
_REFUSE_PRIORITY = -1
# Only gives the key its type; a chain takes its own count.
MAX_ENDPOINTS = 65_536
_SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the kernel should do, or does.

    `services` gives each place its number of endpoints, `refused` are places without
    any, `addresses` are cluster addresses of which no other port may be reached.
    """

    endpoints: Mapping[Slot, Target] = field(default_factory=dict)
    services: Mapping[Place, int] = field(default_factory=dict)
    refused: frozenset[Place] = frozenset()
    addresses: frozenset[str] = frozenset()
    hairpins: frozenset[str] = frozenset()

    def counts(self) -> frozenset[int]:
        """Return the distinct numbers of endpoints: one chain each."""
        return frozenset(self.services.values())


def build(decisions: Iterable[Decision], node_addresses: Sequence[str]) -> Ruleset:
    """Compute the rules."""
    endpoints: dict[Slot, Target] = {}
    services: dict[Place, int] = {}
    refused: set[Place] = set()
    addresses: set[str] = set()
    hairpins: set[str] = set()
    for decision in decisions:
        if not decision.service.cluster_ip:
            continue
        addresses.add(decision.service.cluster_ip)
        for port in decision.ports:
            used = port.used()
            hairpins |= {endpoint.address for endpoint in used}
            for place in _places(decision.service.cluster_ip, port, node_addresses):
                if not used:
                    refused.add(place)
                    continue
                services[place] = len(used)
                endpoints |= {(*place, i): (e.address, e.port) for i, e in enumerate(used)}
    return Ruleset(endpoints, services, frozenset(refused), frozenset(addresses), frozenset(hairpins))


def _places(cluster_ip: str, port: PortDecision, node_addresses: Sequence[str]) -> Iterator[Place]:
    protocol = port.port.protocol.value
    yield cluster_ip, protocol, port.port.port
    if port.port.node_port:
        for address in node_addresses:
            yield address, protocol, port.port.node_port


def frame(table: str) -> list[str]:
    """Return the commands that make the empty table: maps, sets and the chains that never change."""
    head = f"ip {table}"
    lookup = "ip daddr . meta l4proto . th dport"
    refuse = f"priority {_REFUSE_PRIORITY}; policy accept;"
    key = "ipv4_addr . inet_proto . inet_service"
    slot = f"ip daddr . meta l4proto . tcp dport . numgen random mod {MAX_ENDPOINTS}"
    commands = [
        f"add table {head}",
        f"add map {head} endpoints {{ typeof {slot} : ip daddr . tcp dport; }}",
        f"add map {head} service-ips {{ type {key} : verdict; }}",
        f"add set {head} refused {{ type {key}; }}",
        f"add set {head} cluster-ips {{ type ipv4_addr; }}",
        f"add set {head} hairpins {{ type ipv4_addr . ipv4_addr; }}",
        f"add chain {head} services",
        f"add rule {head} services {lookup} vmap @service-ips",
        f"add chain {head} refuse",
        # A reset is not rate-limited, as ICMP is.
        f"add rule {head} refuse {lookup} @refused meta l4proto tcp reject with tcp reset",
        f"add rule {head} refuse {lookup} @refused reject",
        f"add rule {head} refuse ip daddr @cluster-ips meta l4proto tcp reject with tcp reset",
        f"add rule {head} refuse ip daddr @cluster-ips reject",
        f"add chain {head} {_SCRATCH}",
        *_scratch_rule(table),
        f"add chain {head} nat-prerouting {{ type nat hook prerouting priority -100; policy accept; }}",
        f"add rule {head} nat-prerouting jump services",
        f"add chain {head} nat-output {{ type nat hook output priority -100; policy accept; }}",
        f"add rule {head} nat-output jump services",
        f"add chain {head} nat-postrouting {{ type nat hook postrouting priority 100; policy accept; }}",
        f"add rule {head} nat-postrouting ip saddr . ip daddr @hairpins masquerade",
    ]
    for hook in ("input", "forward", "output"):
        commands += [
            f"add chain {head} filter-{hook} {{ type filter hook {hook} {refuse} }}",
            f"add rule {head} filter-{hook} ct state new jump refuse",
        ]
    return commands


# Rules in each chain that never changes; what differs was changed by someone else.
FRAME_RULES = {
    "services": 1,
    "refuse": 4,
    "scratch": 1,
    "nat-prerouting": 1,
    "nat-output": 1,
    "nat-postrouting": 1,
    "filter-input": 1,
    "filter-forward": 1,
    "filter-output": 1,
}
CHAIN_RULES = 2


def chain_name(count: int) -> str:
    """Name the chain that spreads over `count` endpoints."""
    return f"lb-{count}"


def _scratch_rule(table: str) -> list[str]:
    """Return a rule in a chain that nothing jumps to.

    nft 1.0.6 lets the key's type, which names tcp, leak into the first rule of a
    transaction that uses the map: that rule would match TCP alone. This one takes it.
    """
    key = "ip daddr . meta l4proto . th dport . numgen random mod 1"
    return [
        f"flush chain ip {table} {_SCRATCH}",
        f"add rule ip {table} {_SCRATCH} dnat ip to {key} map @endpoints",
    ]


def _chain(table: str, count: int) -> list[str]:
    head, name = f"ip {table}", chain_name(count)
    key = "ip daddr . meta l4proto . th dport"
    return [
        f"add chain {head} {name}",
        f"add rule {head} {name} dnat ip to {key} . numgen random mod {count} map @endpoints",
        f"add rule {head} {name} dnat ip to {key} . numgen random mod 1 map @endpoints",
    ]


def rewrite(table: str, wanted: Ruleset) -> list[str]:
    """Return the commands that replace the whole table in one transaction."""
    return [
        f"add table ip {table}",
        f"delete table ip {table}",
        *frame(table),
        *change(table, Ruleset(), wanted),
    ]


def change(table: str, present: Ruleset, wanted: Ruleset) -> list[str]:
    """Return the commands that lead from one ruleset to another; none when they are equal.

    An element that changes is deleted and added in the same transaction, so no packet
    sees it missing.
    """
    commands: list[str] = []
    new_counts = sorted(wanted.counts() - present.counts())
    commands += _scratch_rule(table) if new_counts else []
    for count in new_counts:
        commands += _chain(table, count)
    gone_services = _differing(present.services, wanted.services)
    gone_endpoints = _differing(present.endpoints, wanted.endpoints)
    commands += _elements("delete", table, "service-ips", [_place(p) for p in gone_services])
    commands += _elements("delete", table, "endpoints", [_slot(s) for s in gone_endpoints])
    new_endpoints = _differing(wanted.endpoints, present.endpoints)
    new_services = _differing(wanted.services, present.services)
    filled = [f"{_slot(s)} : {wanted.endpoints[s][0]} . {wanted.endpoints[s][1]}" for s in new_endpoints]
    led = [f"{_place(p)} : goto {chain_name(wanted.services[p])}" for p in new_services]
    commands += _elements("add", table, "endpoints", filled)
    commands += _elements("add", table, "service-ips", led)
    commands += _set_change(table, "refused", map(_place, present.refused), map(_place, wanted.refused))
    commands += _set_change(table, "cluster-ips", present.addresses, wanted.addresses)
    pairs = (f"{a} . {a}" for a in present.hairpins), (f"{a} . {a}" for a in wanted.hairpins)
    commands += _set_change(table, "hairpins", *pairs)
    for count in sorted(present.counts() - wanted.counts()):
        commands += [
            f"flush chain ip {table} {chain_name(count)}",
            f"delete chain ip {table} {chain_name(count)}",
        ]
    return commands


def _differing(these: Mapping[K, object], those: Mapping[K, object]) -> list[K]:
    return sorted(key for key, value in these.items() if those.get(key) != value)


def _place(place: Place) -> str:
    return f"{place[0]} . {place[1]} . {place[2]}"


def _slot(slot: Slot) -> str:
    return f"{slot[0]} . {slot[1]} . {slot[2]} . {slot[3]:#x}"


def _set_change(table: str, name: str, present: Iterable[str], wanted: Iterable[str]) -> list[str]:
    before, after = set(present), set(wanted)
    gone, new = sorted(before - after), sorted(after - before)
    return _elements("delete", table, name, gone) + _elements("add", table, name, new)


def _elements(verb: str, table: str, name: str, elements: Sequence[str]) -> list[str]:
    return [f"{verb} element ip {table} {name} {{ {', '.join(elements)} }}"] if elements else []
