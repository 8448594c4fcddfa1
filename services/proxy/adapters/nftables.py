"""Our table in the kernel, over netlink: the one file that writes packet rules.

Every change is one transaction, a rewrite of the whole table as well, so no packet
meets a half of it. Only a table that is missing is made in steps. The socket is used
from one thread, whose name tells our transactions from others'.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.proxy.adapters import nfelements, nfframe, nfsticks
from services.proxy.adapters.nfframe import FRAME, SETS, Chain, Hook, Shape
from services.proxy.adapters.nfmessages import (
    CREATE,
    DELETE_CHAIN,
    DELETE_RULE,
    DELETE_SET,
    DELETE_TABLE,
    DUMP,
    GET_CHAIN,
    GET_ELEMENTS,
    GET_RULE,
    GET_SET,
    GET_TABLE,
    NEW_TABLE,
    Message,
    as_number,
    as_text,
    attributes,
    message,
    number,
    text,
)
from services.proxy.adapters.nfsocket import InterruptedDumpError, NetlinkSocket
from services.proxy.core import ways
from services.proxy.core.ruleset import Change, Damage, Ruleset, Stick
from services.proxy.core.ways import Way
from services.proxy.errors import KernelRefusedError

T = TypeVar("T")
_PR_SET_NAME = 15
_READS = 10


def _name_thread(name: str) -> None:
    """Give the kernel's name to this thread, at most 15 bytes: it tells who made a transaction (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


class NftablesKernel:
    """Implements `Kernel` in one table of family `ip`."""

    def __init__(self, table: str, *, thread_name: str = "nftables") -> None:
        self._table = table
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=_name_thread, initargs=(thread_name,))
        self._socket: NetlinkSocket | None = None

    async def _in_thread(self, act: Callable[[NetlinkSocket], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._act, act)

    def _act(self, act: Callable[[NetlinkSocket], T]) -> T:
        try:
            self._socket = self._socket or NetlinkSocket()
            return act(self._socket)
        except OSError as error:
            # What is left in the socket's queue is not known: take a new one the next time.
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            raise KernelRefusedError(f"netlink: {error}") from error

    async def read(self) -> Ruleset | Damage:
        """Return our rules, or why there are none to be read."""
        return await self._in_thread(self._read)

    def _read(self, netlink: NetlinkSocket) -> Ruleset | Damage:
        for _ in range(_READS):
            try:
                return read_table(netlink, self._table)
            except InterruptedDumpError:
                continue
        raise KernelRefusedError("the rules changed whenever they were read")

    async def change(self, change: Change) -> None:
        """Change our rules."""
        await self._in_thread(lambda netlink: netlink.transact(changing(self._table, change)))

    async def rewrite(self, wanted: Ruleset) -> None:
        """Replace all our rules in one transaction; where there are none, make them step by step."""
        await self._in_thread(lambda netlink: self._rewrite(netlink, wanted))

    def _rewrite(self, netlink: NetlinkSocket, wanted: Ruleset) -> None:
        missing = not netlink.ask(message(GET_TABLE, 0, text(1, self._table)))
        if missing:
            _carry_out(netlink, beginning(self._table, wanted))
        else:
            netlink.transact(rewriting(self._table, wanted))

    async def remove(self) -> None:
        """Remove our table."""
        await self._in_thread(lambda netlink: netlink.transact(_removing(self._table)))


def _carry_out(netlink: NetlinkSocket, transactions: Iterator[list[bytes]]) -> None:
    """Carry out one after another; while the kernel works at one, the next is encoded."""
    with ThreadPoolExecutor(max_workers=1) as encoder:
        ahead = encoder.submit(next, transactions, None)
        while (messages := ahead.result()) is not None:
            ahead = encoder.submit(next, transactions, None)
            netlink.transact(messages)


def _removing(table: str) -> list[bytes]:
    """Return the messages that remove a table, which need not be there."""
    named = text(1, table)
    return [message(NEW_TABLE, CREATE, named, number(2, 0)), message(DELETE_TABLE, 0, named)]


def rewriting(table: str, wanted: Ruleset) -> list[bytes]:
    """Return the messages that replace the whole table."""
    return [
        *_removing(table),
        message(NEW_TABLE, CREATE, text(1, table), number(2, 0)),
        *(nfframe.new_set(table, name, identifier) for identifier, name in enumerate(SETS, 1)),
        # A rule may jump to any chain: all of them come first.
        *(one for name, chain in FRAME.items() for one in nfframe.new_chain(table, name, chain)),
        *(one for name, chain in FRAME.items() for one in nfframe.new_rules(table, name, chain)),
        *changing(table, Change(Ruleset(), wanted)),
    ]


def beginning(table: str, wanted: Ruleset) -> Iterator[list[bytes]]:
    """Yield the transactions that make the table where there is none.

    What leads to a service comes after its endpoints, and what refuses comes last, so
    that no packet fares worse than without the table. A large transaction holds all
    its elements in memory three times over, and takes the longer for it.
    """
    yield rewriting(table, Ruleset())
    for step in (
        Ruleset(endpoints=wanted.endpoints),
        Ruleset(
            hairpins=wanted.hairpins,
            masquerades=wanted.masquerades,
            pods=wanted.pods,
            guarded=wanted.guarded,
            allowed=wanted.allowed,
        ),
        Ruleset(services=wanted.services, chains=wanted.chains, sticks=wanted.sticks),
        Ruleset(refused=wanted.refused, addresses=wanted.addresses),
    ):
        yield changing(table, Change(Ruleset(), step))


def changing(table: str, change: Change) -> list[bytes]:
    """Return the messages of a change; an element in both its halves is never missing for a packet."""
    sticks = nfsticks.change(change.gone.sticks, change.new.sticks)
    shared = {ways.name(way): nfframe.chain(way) for way in sorted(change.new.chains, key=ways.name)}
    came = {**shared, **sticks.came}
    gone = sorted({ways.name(way) for way in change.gone.chains} | sticks.gone)
    messages = sticks.new_sets(table)
    # A chain may lead to any other: all of them come first.
    for name, chain in came.items():
        messages += nfframe.new_chain(table, name, chain)
    messages += [_emptying(table, name) for name in sticks.remade]
    for name, chain in [*came.items(), *sticks.remade.items()]:
        messages += nfframe.new_rules(table, name, chain)
    messages += nfelements.deleted(table, change.gone)
    messages += nfelements.added(table, change.new)
    messages += [_emptying(table, name) for name in gone]
    messages += [message(DELETE_CHAIN, 0, text(1, table), text(3, name)) for name in gone]
    messages += [message(DELETE_SET, 0, text(1, table), text(2, name)) for name in sorted(sticks.sets_gone)]
    return messages


def _emptying(table: str, chain: str) -> bytes:
    return message(DELETE_RULE, 0, text(1, table), text(2, chain))


def read_table(netlink: NetlinkSocket, table: str) -> Ruleset | Damage:
    """Read our table. Raises `InterruptedDumpError`."""
    of_table = text(1, table)
    found = netlink.ask(message(GET_TABLE, 0, of_table))
    if not found:
        return Damage.TABLE
    dormant = any(attributes(answer.body).get(2, bytes(4)) != bytes(4) for answer in found)
    chains = _chains(netlink, table)
    sticks = _sticks(chains)
    found_ways = _ways(chains, sticks)
    sets = _sets(netlink.ask(message(GET_SET, DUMP, of_table)), table)
    if dormant or found_ways is None or sets != _SETS_AS_FOUND | _stuck_as_found(sticks):
        return Damage.CHAINS
    lists = {
        name: [
            attributes(m.body)[3] for m in netlink.ask(message(GET_ELEMENTS, DUMP, of_table, text(2, name)))
        ]
        for name in SETS
    }
    try:
        return nfelements.read(lists, found_ways, sticks)
    except ValueError:
        return Damage.ELEMENTS


# What of a chain is compared: its hook, and its rules' comments.
_Found = tuple[Hook | None, tuple[str, ...]]


def _chains(netlink: NetlinkSocket, table: str) -> dict[str, _Found]:
    hooks = {
        as_text(found[3]): _hook(found)
        for answer in netlink.ask(message(GET_CHAIN, DUMP, text(1, table)))
        if as_text((found := attributes(answer.body))[1]) == table
    }
    rules: dict[str, list[str]] = {name: [] for name in hooks}
    for answer in netlink.ask(message(GET_RULE, DUMP, text(1, table))):
        found = attributes(answer.body)
        if as_text(found[1]) == table:
            rules.setdefault(as_text(found[2]), []).append(nfframe.comment(found.get(7, b"")))
    return {name: (hooks.get(name), tuple(comments)) for name, comments in rules.items()}


def _hook(found: Mapping[int, bytes]) -> Hook | None:
    if 4 not in found:
        return None
    place = attributes(found[4])
    accepts = as_number(found.get(5, b"")) == nfframe.ACCEPT
    priority = int.from_bytes(place[2], "big", signed=True)
    return Hook(as_text(found.get(7, b"")) if accepts else "drops", as_number(place[1]), priority)


def _as_found(chain: Chain) -> _Found:
    return chain.hook, tuple(nfframe.digest(rule) for rule in chain.rules)


_FRAME_AS_FOUND = {name: _as_found(chain) for name, chain in FRAME.items()}


def _ways(chains: Mapping[str, _Found], sticks: Sequence[Stick]) -> list[Way] | None:
    """Return the ways that there are chains for; None when a chain is not as we make it."""
    of_sticks = {name: _as_found(chain) for name, chain in nfsticks.expected(sticks)[0].items()}
    known = {**_FRAME_AS_FOUND, **of_sticks}
    others = {name: found for name, found in chains.items() if name not in known}
    if {name: chains.get(name) for name in known} != known:
        return None
    found_ways = [way for name in others if (way := ways.parse(name)) is not None and not ways.group(way)]
    expected = {ways.name(way): _as_found(nfframe.chain(way)) for way in found_ways}
    return found_ways if others == expected else None


def _sticks(chains: Mapping[str, _Found]) -> list[Stick]:
    """Return the sticky groups, with their endpoints in the order that each group's chain has them."""
    return [_in_order(stick, chains) for stick in nfsticks.read(chains)]


def _in_order(stick: Stick, chains: Mapping[str, _Found]) -> Stick:
    """Sort a group's endpoints as its chain does, which its digests tell; as they are if they do not."""
    _, digests = chains.get(ways.name(ways.sticky(stick.group)), (None, ()))
    by_digest = {nfframe.digest(nfframe.sticky_rule(stick, target)): target for target in stick.targets}
    found = [by_digest[digest] for digest in digests if digest in by_digest]
    return stick._replace(targets=tuple(found)) if len(found) == len(stick.targets) else stick


def _stuck_as_found(sticks: Sequence[Stick]) -> dict[str, Shape]:
    return dict.fromkeys(nfsticks.expected(sticks)[1], _STUCK_AS_FOUND)


def _sets(answers: Sequence[Message], table: str) -> dict[str, Shape]:
    """Return the types of a table's sets."""
    found = [attributes(answer.body) for answer in answers]
    return {
        as_text(one[2]): Shape(as_number(one[4]), as_number(one[5]), as_number(one.get(6, b"")))
        for one in found
        if as_text(one[1]) == table
    }


_SETS_AS_FOUND = {
    name: Shape(shape.key_type, shape.key_length, shape.value_type) for name, shape in SETS.items()
}
_STUCK_AS_FOUND = Shape(nfframe.STUCK.key_type, nfframe.STUCK.key_length)
