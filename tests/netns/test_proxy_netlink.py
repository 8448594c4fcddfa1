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
add chain ip t services
add chain ip t refuse
add chain ip t nat-prerouting { type nat hook prerouting priority -100; policy accept; }
add chain ip t nat-output { type nat hook output priority -100; policy accept; }
add chain ip t nat-postrouting { type nat hook postrouting priority 100; policy accept; }
add chain ip t filter-input { type filter hook input priority -1; policy accept; }
add chain ip t filter-forward { type filter hook forward priority -1; policy accept; }
add chain ip t filter-output { type filter hook output priority -1; policy accept; }
add rule ip t services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip t refuse ip daddr . meta l4proto . th dport @refused meta l4proto tcp reject with tcp reset
add rule ip t refuse ip daddr . meta l4proto . th dport @refused reject
add rule ip t refuse ip daddr @cluster-ips meta l4proto tcp reject with tcp reset
add rule ip t refuse ip daddr @cluster-ips reject
add rule ip t nat-prerouting jump services
add rule ip t nat-output jump services
add rule ip t nat-postrouting ip saddr . ip daddr @hairpins masquerade
add rule ip t filter-input ct state new jump refuse
add rule ip t filter-forward ct state new jump refuse
add rule ip t filter-output ct state new jump refuse
add element ip t refused { 10.2.0.2 . udp . 53 }
add element ip t cluster-ips { 10.2.0.1, 10.2.0.2 }
add element ip t hairpins { 10.1.0.1 . 10.1.0.1, 10.1.0.2 . 10.1.0.2 }
add element ip t endpoints { 10.2.0.1 . tcp . 80 . 0x0 : 10.1.0.1 . 8080 }
add element ip t endpoints { 10.2.0.1 . tcp . 80 . 0x1 : 10.1.0.2 . 8080 }
"""
# In a transaction of its own: nft 1.0.6 lets the type of a map's key leak into the first rule that uses it.
CHAIN_AS_TEXT = """
add chain ip t lb-2
add rule ip t lb-2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
add rule ip t lb-2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 map @endpoints
add element ip t service-ips { 10.2.0.1 . tcp . 80 : goto lb-2 }
"""
BEGIN = """
import asyncio, random
from services.proxy.adapters.nftables import NftablesKernel
from services.proxy.core.ruleset import Change, Damage, Ruleset, difference
from services.proxy.errors import KernelRefusedError
kernel = NftablesKernel("t")
"""
WRITE = (
    BEGIN
    + """
place = ("10.2.0.1", "tcp", 80)
asyncio.run(kernel.rewrite(Ruleset(
    {(*place, 0): ("10.1.0.1", 8080), (*place, 1): ("10.1.0.2", 8080)}, {place: 2}, {("10.2.0.2", "udp", 53)},
    {"10.2.0.1", "10.2.0.2"}, {"10.1.0.1", "10.1.0.2"}, {2})))
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
    return Ruleset(endpoints, services, *sets, set(services.values()))
async def main():
    chance, present = random.Random(2), Ruleset()
    assert await kernel.read() is Damage.TABLE
    await kernel.rewrite(present)
    for step in range(48):
        wanted = drawn(chance)
        # Now and then all anew, over what there is.
        await (kernel.rewrite(wanted) if step % 8 == 7 else kernel.change(difference(present, wanted)))
        assert await kernel.read() == wanted, step
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
    ours = within(f"{python(WRITE)}; nft list table ip t")

    assert len(re.findall(r' comment "tripod-[0-9a-f]{8}"', ours)) == 13
    assert re.sub(r' comment "tripod-[0-9a-f]{8}"', "", ours) == theirs


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
