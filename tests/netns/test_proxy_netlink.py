"""What we write over netlink, as a real kernel and nft see it; each test in a namespace of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.netns
# The table in nft's own words; ours must be listed like it, but for the comments.
OURS_AS_TEXT = """
add table ip t
add map ip t endpoints {
  typeof ip daddr . meta l4proto . tcp dport . numgen random mod 65536 : ip daddr . tcp dport;
}
add map ip t service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add set ip t refused { type ipv4_addr . inet_proto . inet_service; }
add set ip t cluster-ips { type ipv4_addr; }
add set ip t hairpins { type ipv4_addr . ipv4_addr; }
add map ip t masquerades { type ipv4_addr . inet_proto . inet_service : verdict; }
add set ip t pods { type ipv4_addr; flags interval; }
add set ip t guarded { type ipv4_addr . inet_proto . inet_service; }
add set ip t allowed { type ipv4_addr . inet_proto . inet_service . ipv4_addr; flags interval; }
add set ip t stuck-aaa-tcp-60-10.1.0.1-8080 { type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }
add set ip t stuck-aaa-tcp-60-10.1.0.2-8080 { type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }
add chain ip t services
add chain ip t masq-always
add chain ip t masq-unless-pod
add chain ip t masq-own
add chain ip t refuse
add chain ip t nat-prerouting { type nat hook prerouting priority -100; policy accept; }
add chain ip t nat-output { type nat hook output priority -100; policy accept; }
add chain ip t nat-postrouting { type nat hook postrouting priority 100; policy accept; }
add chain ip t filter-input { type filter hook input priority -1; policy accept; }
add chain ip t filter-forward { type filter hook forward priority -1; policy accept; }
add chain ip t filter-output { type filter hook output priority -1; policy accept; }
add rule ip t services ip daddr . meta l4proto . th dport @guarded \
  ip daddr . meta l4proto . th dport . ip saddr != @allowed drop
add rule ip t services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip t masq-always masquerade fully-random
add rule ip t masq-unless-pod ip saddr != @pods masquerade fully-random
add rule ip t masq-own fib saddr type local masquerade fully-random
add rule ip t refuse ip daddr . meta l4proto . th dport @refused meta l4proto tcp reject with tcp reset
add rule ip t refuse ip daddr . meta l4proto . th dport @refused reject
add rule ip t refuse ip daddr @cluster-ips meta l4proto tcp reject with tcp reset
add rule ip t refuse ip daddr @cluster-ips reject
add rule ip t nat-prerouting jump services
add rule ip t nat-output jump services
add rule ip t nat-postrouting ct status dnat ip saddr . ip daddr @hairpins masquerade fully-random
add rule ip t filter-input ct state new jump refuse
add rule ip t filter-forward ct state new jump refuse
add rule ip t filter-output ct state new jump refuse
add element ip t refused { 10.2.0.2 . udp . 53 }
add element ip t cluster-ips { 10.2.0.1, 10.2.0.2 }
add element ip t hairpins { 10.1.0.1 . 10.1.0.1, 10.1.0.2 . 10.1.0.2 }
add element ip t masquerades { 10.2.0.1 . tcp . 80 : goto masq-unless-pod }
add element ip t masquerades { 10.2.0.1 . tcp . 82 : goto masq-own }
add element ip t pods { 10.1.0.0/16, 255.255.255.0/24 }
add element ip t guarded { 10.2.0.1 . tcp . 80 }
add element ip t allowed { 10.2.0.1 . tcp . 80 . 192.0.2.0/24 }
add element ip t endpoints { 10.2.0.1 . tcp . 80 . 0x0 : 10.1.0.1 . 8080 }
add element ip t endpoints { 10.2.0.1 . tcp . 80 . 0x1 : 10.1.0.2 . 8080 }
"""
# nft 1.0.6 lists this rule and cannot read it.
ONLY_LISTED = (
    "\t\tct status dnat ct original ip daddr . meta l4proto . ct original proto-dst vmap @masquerades\n"
)
# In a transaction of its own: nft 1.0.6 lets the type of a map's key leak into the first rule that uses it.
CHAIN_AS_TEXT = """
add chain ip t lb-2
add rule ip t lb-2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
add rule ip t lb-2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 map @endpoints
add chain ip t lo-1
add rule ip t lo-1 dnat ip to ip daddr . meta l4proto . th dport . \
  numgen random mod 1 offset 65536 map @endpoints
add rule ip t lo-1 dnat ip to ip daddr . meta l4proto . th dport . \
  numgen random mod 1 offset 65536 map @endpoints
add chain ip t split-lb-2-lo-1
add chain ip t split-stick-aaa-drop
add chain ip t ep-aaa-tcp-60-10.1.0.1-8080
add chain ip t ep-aaa-tcp-60-10.1.0.2-8080
add chain ip t stick-aaa
add rule ip t ep-aaa-tcp-60-10.1.0.1-8080 update @stuck-aaa-tcp-60-10.1.0.1-8080 { ip saddr }
add rule ip t ep-aaa-tcp-60-10.1.0.1-8080 meta l4proto tcp dnat to 10.1.0.1:8080
add rule ip t ep-aaa-tcp-60-10.1.0.2-8080 update @stuck-aaa-tcp-60-10.1.0.2-8080 { ip saddr }
add rule ip t ep-aaa-tcp-60-10.1.0.2-8080 meta l4proto tcp dnat to 10.1.0.2:8080
add rule ip t stick-aaa ip saddr @stuck-aaa-tcp-60-10.1.0.1-8080 goto ep-aaa-tcp-60-10.1.0.1-8080
add rule ip t stick-aaa ip saddr @stuck-aaa-tcp-60-10.1.0.2-8080 goto ep-aaa-tcp-60-10.1.0.2-8080
add rule ip t stick-aaa numgen random mod 2 0 goto ep-aaa-tcp-60-10.1.0.1-8080
add rule ip t stick-aaa goto ep-aaa-tcp-60-10.1.0.2-8080
add rule ip t split-lb-2-lo-1 ip saddr @pods goto lb-2
add rule ip t split-lb-2-lo-1 fib saddr type local goto lb-2
add rule ip t split-lb-2-lo-1 goto lo-1
add rule ip t split-stick-aaa-drop ip saddr @pods goto stick-aaa
add rule ip t split-stick-aaa-drop fib saddr type local goto stick-aaa
add rule ip t split-stick-aaa-drop drop
add element ip t service-ips { 10.2.0.1 . tcp . 80 : goto lb-2 }
add element ip t service-ips { 10.2.0.1 . tcp . 81 : goto split-stick-aaa-drop }
add element ip t service-ips { 10.2.0.1 . tcp . 82 : goto split-lb-2-lo-1 }
add element ip t service-ips { 10.2.0.1 . tcp . 83 : drop }
"""
BEGIN = """
import asyncio, ipaddress, random
from services.proxy.adapters.nftables import NftablesKernel
from services.proxy.core import ways
from services.proxy.core.ruleset import Change, Damage, Masquerade, Ruleset, Stick, difference
from services.proxy.errors import KernelRefusedError
kernel = NftablesKernel("t")
"""
WRITE = (
    BEGIN
    + """
def at(port): return ("10.2.0.1", "tcp", port)
ours = Ruleset(
    {(*at(80), 0): ("10.1.0.1", 8080), (*at(80), 1): ("10.1.0.2", 8080)},
    {at(80): 2, at(81): "split-stick-aaa-drop", at(82): "split-lb-2-lo-1", at(83): "drop"},
    {("10.2.0.2", "udp", 53)}, {"10.2.0.1", "10.2.0.2"}, {"10.1.0.1", "10.1.0.2"},
    {2, "lo-1", "split-stick-aaa-drop", "split-lb-2-lo-1"},
    {at(80): Masquerade.UNLESS_POD, at(82): Masquerade.OWN}, {"10.1.0.0/16", "255.255.255.0/24"},
    {at(80)}, {(*at(80), "192.0.2.0/24")},
    {Stick("aaa", "tcp", 60, (("10.1.0.1", 8080), ("10.1.0.2", 8080)))})
async def main():
    await kernel.rewrite(ours)
    assert await kernel.read() == ours, await kernel.read()
asyncio.run(main())
"""
)
WALK = (
    BEGIN
    + """
def drawn(chance):
    places = [(f"10.2.0.{i}", p, 80) for i in range(1, 5) for p in ("tcp", "udp")]
    services = {place: chance.randrange(1, 6) for place in places if chance.random() < 0.6}
    slots = [(*place, index) for place, count in services.items() for index in range(count)]
    endpoints = {slot: (f"10.1.0.{chance.randrange(1, 9)}", 8080) for slot in slots}
    sets = set(places) - set(services), {p[0] for p in places}, {t[0] for t in endpoints.values()}
    first = ways.FIRST_LOCAL_INDEX
    near = {(*p, first): ("10.1.0.1", 8080) for p in services if chance.random() < 0.3}
    def some(): return tuple((f"10.1.0.{i}", 80) for i in chance.sample(range(9), 3))
    sticks = {Stick(group, "tcp", chance.choice([60, 90]), some())
              for group in ("aa", "bb") if chance.random() < 0.7}
    spread = dict(services)
    services |= {place[:3]: ways.split(spread[place[:3]], "lo-1") for place in near}
    for stick in sticks: services[("10.2.0.9", "tcp", len(services))] = chance.choice(
        [ways.sticky(stick.group), ways.split(ways.sticky(stick.group), "drop")])
    chains = {c for way in services.values() for c in ways.shared(way)} | set(spread.values())
    masquerades = {place: chance.choice(list(Masquerade)) for place in services if chance.random() < 0.5}
    nets = ["10.1.0.0/24", "10.1.1.0/24", "10.1.3.0/24", "0.0.0.0/8", "255.0.0.0/8"]
    pods = set(chance.sample(nets, 3))
    pods = {str(n) for n in ipaddress.collapse_addresses(map(ipaddress.ip_network, pods))}
    guarded = set(chance.sample(places, 3))
    ranges = ["0.0.0.0/8", "192.0.2.0/24", "198.51.100.7/32"]
    allowed = {(*place, one) for place in guarded for one in chance.sample(ranges, 2)}
    return Ruleset(endpoints | near, services, *sets, chains, masquerades, pods, guarded, allowed, sticks)
async def main():
    chance, present = random.Random(2), Ruleset()
    assert await kernel.read() is Damage.TABLE
    await kernel.rewrite(present)
    for step in range(48):
        wanted = drawn(chance)
        # Now and then all anew, over what there is.
        await (kernel.rewrite(wanted) if step % 8 == 7 else kernel.change(difference(present, wanted)))
        assert await kernel.read() == wanted, (step, await kernel.read(), wanted)
        present = wanted
    await kernel.remove()
    await kernel.remove()
    assert await kernel.read() is Damage.TABLE
asyncio.run(main())
"""
)
SPARSE = (
    BEGIN
    + """
async def main():
    # No endpoints and no services: the steps between the first and the last have nothing to do.
    have = Ruleset(refused=frozenset({("10.2.0.1", "tcp", 80)}), addresses=frozenset({"10.2.0.1"}))
    await kernel.rewrite(have)
    assert await kernel.read() == have
asyncio.run(main())
"""
)
REFUSE = (
    BEGIN
    + """
async def main():
    place = ("10.2.0.1", "tcp", 80)
    have = Ruleset({(*place, 0): ("10.1.0.1", 80)}, {place: 1}, chains=frozenset({1}))
    await kernel.rewrite(have)
    late = Ruleset({("10.2.0.9", "udp", 53, 0): ("10.1.0.1", 80)})
    refused, none = frozenset({place}), Ruleset()
    for change, complaint in (
        (Change(late, Ruleset(refused=refused)), "ENOENT for element of endpoints"),
        (Change(none, Ruleset(refused=refused, services={place: 1})), ""),
        (Change(Ruleset(chains=frozenset({1})), Ruleset(refused=refused)), "EBUSY for chain of lb-1"),
        (Change(none, Ruleset(refused=refused, services={(*place[:2], 81): 7})), "element of service-ips"),
    ):
        try:
            await kernel.change(change)
        except KernelRefusedError as error:
            assert complaint and complaint in error.message, error.message
        else:
            assert not complaint, complaint
            await kernel.rewrite(have)
        assert await kernel.read() == have
asyncio.run(main())
"""
)
# A host with two addresses, the second of which is an endpoint and is asked itself.
DIRECT = (
    BEGIN
    + """
import socket
place = ("10.2.0.1", "tcp", 80)
have = Ruleset({(*place, 0): ("192.0.2.2", 80)}, {place: 1}, hairpins={"192.0.2.2"}, chains={1})
asyncio.run(kernel.rewrite(have))
with socket.create_server(("192.0.2.2", 80)) as server:
    with socket.create_connection(("192.0.2.2", 80), 5) as asked, server.accept()[0] as taken:
        assert taken.getpeername() == asked.getsockname(), (taken.getpeername(), asked.getsockname())
"""
)
# The same host asks through a service, from a port that it chose.
RANDOM = (
    BEGIN
    + """
import socket
place = ("10.2.0.1", "tcp", 80)
led, masqueraded = {(*place, 0): ("192.0.2.2", 80)}, {place: Masquerade.ALWAYS}
have = Ruleset(led, {place: 1}, chains={1}, masquerades=masqueraded)
asyncio.run(kernel.rewrite(have))
chosen, seen = {40001, 40002, 40003}, set()
with socket.create_server(("192.0.2.2", 80)) as server:
    for port in chosen:
        with socket.create_connection(("10.2.0.1", 80), 5, ("192.0.2.1", port)), server.accept()[0] as taken:
            seen.add(taken.getpeername()[1])
assert seen != chosen, seen
"""
)


def within(script: str) -> str:
    """Run a shell script in a new network namespace; it must succeed."""
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(program: str) -> str:
    """Quote a program for the shell."""
    assert "'" not in program
    return f"{sys.executable} -c '{program}'"


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is missing: apt-get install nftables")
def test_nft_lists_our_table_as_its_own() -> None:
    """The same maps, sets, chains and rules, so that people can read them."""
    theirs = within(
        f"nft '{OURS_AS_TEXT}'; nft 'add chain ip t x; add rule ip t x dnat ip to ip daddr . "
        f"meta l4proto . th dport . numgen random mod 1 map @endpoints; {CHAIN_AS_TEXT}'; "
        "nft 'flush chain ip t x; delete chain ip t x'; nft list table ip t"
    )
    ours = within(f"{python(WRITE)}; nft list table ip t; nft -j list table ip t >/dev/null")
    listed = re.sub(r' comment "tripod-[0-9a-f]{8}"', "", ours)

    assert len(re.findall(r' comment "tripod-[0-9a-f]{8}"', ours)) == 34
    assert ONLY_LISTED in listed
    assert listed.replace(ONLY_LISTED, "") == theirs


def test_each_of_many_changes_leads_where_it_should() -> None:
    """48 rulesets at random, one after another; what is read back is what was wanted."""
    within(python(WALK))


def test_a_new_table_is_made_to_the_end_though_some_steps_have_nothing_to_do() -> None:
    """Services without any endpoint are refused from the first moment, too."""
    within(python(SPARSE))


@pytest.mark.fault("F41")
def test_the_kernel_does_all_of_a_change_or_nothing() -> None:
    """And what it refuses is named."""
    within(python(REFUSE))


def test_what_a_host_sends_to_its_own_address_keeps_its_source() -> None:
    """Though the address is an endpoint, too: only what a service led there is masqueraded."""
    within(f"{two_addresses()} {python(DIRECT)}")


def test_a_masqueraded_connection_has_a_port_taken_at_random() -> None:
    """As with kube-proxy: packets of clients that chose the same port do not race for it."""
    within(f"{two_addresses()} ip route add 10.2.0.0/24 dev v1; {python(RANDOM)}")


def two_addresses() -> str:
    """Return the commands that give a host its addresses."""
    links = "".join(
        f"ip link add v{i} type veth peer name w{i}; ip link set v{i} up; ip link set w{i} up; "
        f"ip addr add 192.0.2.{i}/32 dev v{i}; "
        for i in (1, 2)
    )
    return f"ip link set lo up; {links}"
