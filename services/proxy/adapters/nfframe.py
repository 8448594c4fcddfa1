"""What our table has besides its elements: sets, chains and their rules. No I/O.

As nft lists it, without the comments:

    map endpoints   { typeof ip daddr . meta l4proto . tcp dport . numgen random mod 65536
                             : ip daddr . tcp dport }
    map service-ips { type ipv4_addr . inet_proto . inet_service : verdict }
    set refused     { type ipv4_addr . inet_proto . inet_service }
    set cluster-ips { type ipv4_addr }
    set hairpins    { type ipv4_addr . ipv4_addr }
    map masquerades { type ipv4_addr . inet_proto . inet_service : verdict }
    set pods        { type ipv4_addr; flags interval }
    set guarded     { type ipv4_addr . inet_proto . inet_service }
    set allowed     { type ipv4_addr . inet_proto . inet_service . ipv4_addr; flags interval }
    chain lb-N      { dnat ip to ip daddr . meta l4proto . th dport . numgen random mod N map @endpoints
                      the same with mod 1, for a packet whose index has just gone }
    chain lo-N      { the same with offset 65536 }
    chain split-A-B { ip saddr @pods goto A; fib saddr type local goto A; goto B }

and the chains of `FRAME`, whose set `masquerades` is asked for where the packet was sent first. Each
port of a service that keeps its clients has a chain `stick-GROUP`, and each of its endpoints

    set stuck-GROUP-ENDPOINT { type ipv4_addr; size 65535; flags dynamic,timeout }
    chain ep-GROUP-ENDPOINT  { update @stuck-GROUP-ENDPOINT { ip saddr }; dnat to ENDPOINT }

Each rule has a comment with a digest of its content, by
which a rule that others put in its place is told from ours, and a new release's from
an old one's. The index has the type of `numgen`, because nft 1.0.6 cannot list a key
with a plain integer.

Source: linux/netfilter/nf_tables.h; the type numbers and user data are those of nft.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from socket import inet_aton

from services.proxy.adapters.nfmessages import (
    APPEND,
    CREATE,
    NEW_CHAIN,
    NEW_RULE,
    NEW_SET,
    as_text,
    attribute,
    message,
    nested,
    number,
    text,
)
from services.proxy.core import ways
from services.proxy.core.ruleset import Stick, Target
from services.proxy.core.ways import Way

GOTO, JUMP = -4, -3  # NFT_GOTO, NFT_JUMP
_DROP, ACCEPT = 0, 1  # NF_DROP, NF_ACCEPT
# Registers: the first is 16 bytes wide; its second, third and fourth words have names of their own.
_VERDICT, _FIRST, _SECOND, _THIRD, _FOURTH = 0, 1, 9, 10, 11
_NETWORK, _TRANSPORT = 1, 2
_SOURCE, _DESTINATION = 12, 16  # Offsets of the addresses in an IPv4 header.
_TCP = b"\x06"
_ICMP_PORT_UNREACHABLE = 3
_STATE_NEW = struct.pack("=I", 8)
_STATUS_DNAT = struct.pack("=I", 0x20)  # IPS_DST_NAT


def _expression(name: str, *data: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *data))


def _payload(register: int, base: int, offset: int, length: int) -> bytes:
    return _expression("payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def _protocol(register: int) -> bytes:
    return _expression("meta", number(2, 16), number(1, register))  # NFT_META_L4PROTO


def _compare(value: bytes, *, equal: bool = True) -> bytes:
    return _expression("cmp", number(1, _FIRST), number(2, 0 if equal else 1), nested(3, attribute(1, value)))


def _lookup(name: str, *destination: int, inverted: bool = False) -> bytes:
    inversion = [number(5, 1)] if inverted else []
    into = (number(3, d) for d in destination)
    return _expression("lookup", number(2, _FIRST), *into, text(1, name), *inversion)


def _reject(kind: int, code: int) -> bytes:
    return _expression("reject", number(1, kind), attribute(2, bytes([code])))


def verdict(code: int, chain: str) -> bytes:
    """Encode a verdict that leads to a chain."""
    return nested(2, number(1, code), text(2, chain))


def dropping() -> bytes:
    """Encode the verdict that drops a packet."""
    return nested(2, number(1, _DROP))


def _lead(code: int, chain: str) -> bytes:
    return _expression("immediate", number(1, _VERDICT), nested(2, verdict(code, chain)))


def _jump(chain: str) -> bytes:
    return _lead(JUMP, chain)


def _goto(chain: str) -> bytes:
    return _lead(GOTO, chain)


_ADDRESS = _payload(_FIRST, _NETWORK, _DESTINATION, 4)
_PLACE = _ADDRESS + _protocol(_SECOND) + _payload(_THIRD, _TRANSPORT, 2, 2)
_PAIR = _payload(_FIRST, _NETWORK, _SOURCE, 4) + _payload(_SECOND, _NETWORK, _DESTINATION, 4)
_IS_TCP = _protocol(_FIRST) + _compare(_TCP)


def _has(source: bytes, bits: bytes) -> bytes:
    return (
        source
        + _expression(
            "bitwise",
            *(number(1, _FIRST), number(2, _FIRST), number(3, 4)),
            *(nested(4, attribute(1, bits)), nested(5, attribute(1, bytes(4)))),
        )
        + _compare(bytes(4), equal=False)
    )


def _conntrack(key: int, register: int = _FIRST) -> bytes:
    return _expression("ct", number(2, key), number(1, register))


def _original(key: int, register: int) -> bytes:
    return _expression("ct", number(2, key), number(1, register), attribute(3, bytes(1)))


_IS_NEW = _has(_conntrack(0), _STATE_NEW)  # NFT_CT_STATE
_IS_TRANSLATED = _has(_conntrack(2), _STATUS_DNAT)  # NFT_CT_STATUS
_SOURCE_ADDRESS = _payload(_FIRST, _NETWORK, _SOURCE, 4)
# Where the first packet of a connection was sent, before it was translated: NFT_CT_DST_IP, NFT_CT_PROTO_DST.
_ORIGINAL_PLACE = _original(20, _FIRST) + _protocol(_SECOND) + _original(12, _THIRD)
_FROM_HERE = (
    _expression("fib", number(1, _FIRST), number(2, 3), number(3, 1))  # FIB_RESULT_ADDRTYPE, FIB_F_SADDR
    + _compare(struct.pack("=I", 2))  # RTN_LOCAL
)
_DROPS = _expression("immediate", number(1, _VERDICT), nested(2, dropping()))
# At a random port: two packets at once could else choose the same, and the kernel would drop the second.
_MASQUERADE = _expression("masq", number(1, 1 << 4))  # NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY
_RESET, _UNREACHABLE = _reject(1, 0), _reject(0, _ICMP_PORT_UNREACHABLE)


_TRANSLATE = _expression("nat", number(1, 1), number(2, 2), number(3, _FIRST), number(5, _SECOND))


def _random(register: int, count: int, first: int = 0) -> bytes:
    return _expression("numgen", number(1, register), number(2, count), number(3, 1), number(4, first))


def _spread(count: int, first: int) -> bytes:
    return _PLACE + _random(_FOURTH, count, first) + _lookup("endpoints", _FIRST) + _TRANSLATE


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain sits. Its policy is to accept."""

    kind: str
    point: int
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain: its rules, and its hook if it has one."""

    rules: Sequence[bytes]
    hook: Hook | None = None


# Points: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
# Priorities: dstnat -100, filter 0, srcnat 100.
_TO_SERVICES = [_jump("services")]
_TO_REFUSE = [_IS_NEW + _jump("refuse")]
FRAME: Mapping[str, Chain] = {
    "services": Chain(
        [
            _PLACE
            + _lookup("guarded")
            + _PLACE
            + _payload(_FOURTH, _NETWORK, _SOURCE, 4)
            + _lookup("allowed", inverted=True)
            + _DROPS,
            _PLACE + _lookup("service-ips", _VERDICT),
        ]
    ),
    "masq-always": Chain([_MASQUERADE]),
    "masq-unless-pod": Chain([_SOURCE_ADDRESS + _lookup("pods", inverted=True) + _MASQUERADE]),
    "masq-own": Chain([_FROM_HERE + _MASQUERADE]),
    # A reset is not rate-limited, as ICMP is.
    "refuse": Chain(
        [
            _PLACE + _lookup("refused") + _IS_TCP + _RESET,
            _PLACE + _lookup("refused") + _UNREACHABLE,
            _ADDRESS + _lookup("cluster-ips") + _IS_TCP + _RESET,
            _ADDRESS + _lookup("cluster-ips") + _UNREACHABLE,
        ]
    ),
    "nat-prerouting": Chain(_TO_SERVICES, Hook("nat", 0, -100)),
    "nat-output": Chain(_TO_SERVICES, Hook("nat", 3, -100)),
    "nat-postrouting": Chain(
        [
            # Only what we sent there: what a host sends to an address of its own keeps its source.
            _IS_TRANSLATED + _PAIR + _lookup("hairpins") + _MASQUERADE,
            _IS_TRANSLATED + _ORIGINAL_PLACE + _lookup("masquerades", _VERDICT),
        ],
        Hook("nat", 4, 100),
    ),
    "filter-input": Chain(_TO_REFUSE, Hook("filter", 1, -1)),
    "filter-forward": Chain(_TO_REFUSE, Hook("filter", 2, -1)),
    "filter-output": Chain(_TO_REFUSE, Hook("filter", 3, -1)),
}


def chain(way: Way) -> Chain:
    """Return the chain of a way that is shared."""
    own, others = (ways.branch(way, own=own) for own in (True, False))
    if own != others:
        first = _goto(ways.name(own))
        last = _DROPS if others == ways.DROP else _goto(ways.name(others))
        return Chain([_SOURCE_ADDRESS + _lookup("pods") + first, _FROM_HERE + first, last])
    found = ways.indices(way)
    return Chain([_spread(len(found), found.start), _spread(1, found.start)])


def stuck_name(stick: Stick, target: Target) -> str:
    """Name the set of the clients that an endpoint keeps."""
    return f"stuck-{stick.group}-{_endpoint_name(stick, target)}"


def _endpoint_name(stick: Stick, target: Target) -> str:
    return f"{stick.protocol}-{stick.timeout_seconds}-{target[0]}-{target[1]}"


def endpoint_chains(stick: Stick) -> dict[str, Chain]:
    """Return the chains of a sticky group's endpoints, by name."""
    return {_endpoint_chain(stick, target): _keeping(stick, target) for target in stick.targets}


def _endpoint_chain(stick: Stick, target: Target) -> str:
    return f"ep-{stick.group}-{_endpoint_name(stick, target)}"


def sticky_rule(stick: Stick, target: Target) -> bytes:
    """Return the rule that leads the clients of an endpoint there."""
    return _SOURCE_ADDRESS + _lookup(stuck_name(stick, target)) + _goto(_endpoint_chain(stick, target))


def _keeping(stick: Stick, target: Target) -> Chain:
    name, (address, port) = stuck_name(stick, target), target
    update = _expression("dynset", text(1, name), number(3, 1), number(4, _FIRST))  # NFT_DYNSET_OP_UPDATE
    to = ((_FIRST, inet_aton(address)), (_SECOND, struct.pack(">H", port)))
    values = (
        _expression("immediate", number(1, register), nested(2, attribute(1, value)))
        for register, value in to
    )
    is_protocol = _protocol(_FIRST) + _compare(bytes([PROTOCOL_NUMBERS[stick.protocol]]))
    return Chain([_SOURCE_ADDRESS + update, is_protocol + b"".join(values) + _TRANSLATE])


def sticky_chain(stick: Stick) -> Chain:
    """Return the chain that leads a client to its endpoint, or to any while it has none."""
    names = [_endpoint_chain(stick, target) for target in stick.targets]
    known = [sticky_rule(stick, target) for target in stick.targets]
    others = [
        _random(_FIRST, len(names) - index) + _compare(bytes(4)) + _goto(name)
        for index, name in enumerate(names[:-1])
    ]
    return Chain([*known, *others, _goto(names[-1])])


@dataclass(frozen=True, slots=True)
class Shape:
    """What a set's keys and values are: nft's type numbers, and lengths in bytes. A set has no values."""

    key_type: int
    key_length: int
    value_type: int = 0
    value_length: int = 0
    user_data: bytes = b""
    flags: int = 0
    field_lengths: tuple[int, ...] = ()


_VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT
_INTERVAL, _MAP, _TIMEOUT, _DYNAMIC, _CONCATENATION = 0x4, 0x8, 0x10, 0x20, 0x80  # NFT_SET_...
# What nft writes for the `typeof` above, so that it can list the index.
_TYPEOF = bytes.fromhex(
    "0004000000000104000000000360"
    "00040d00000001580014000407000000010c00040c00000001040c000000010e"
    "00040900000001060004100000000214000407000000010c000408000000010402000000031a0004170000000112"
    "0004010000000104000001000204000000000434"
    "00040d000000012c0014000407000000010c00040c00000001040c0000000114000407000000010c00040800000001040200000006"
    "0400000000"
)
SETS: Mapping[str, Shape] = {
    "endpoints": Shape(0x1CC344, 16, 0x1CD, 8, _TYPEOF),
    "service-ips": Shape(0x730D, 12, _VERDICT_TYPE, 0),
    "refused": Shape(0x730D, 12),
    "cluster-ips": Shape(7, 4),
    "hairpins": Shape(0x1C7, 8),
    "masquerades": Shape(0x730D, 12, _VERDICT_TYPE, 0),
    "pods": Shape(7, 4, flags=_INTERVAL),
    "guarded": Shape(0x730D, 12),
    "allowed": Shape(0x1CC347, 16, flags=_INTERVAL | _CONCATENATION, field_lengths=(4, 1, 2, 4)),
}
# What a client's set is.
STUCK = Shape(7, 4, flags=_DYNAMIC | _TIMEOUT)
_STUCK_LIMIT = 65_535
PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}


def digest(rule: bytes) -> str:
    """Return the comment of a rule."""
    return f"tripod-{hashlib.sha256(rule).hexdigest()[:8]}"


def new_set(table: str, name: str, identifier: int) -> bytes:
    """Encode the message that makes one of our sets; `identifier` is unique in its transaction."""
    shape = SETS[name]
    value = [number(6, shape.value_type), number(7, shape.value_length)] if shape.value_type else []
    user_data = [attribute(13, shape.user_data)] if shape.user_data else []
    flags = shape.flags | (_MAP if value else 0)
    # NFTA_SET_DESC_CONCAT of NFTA_SET_FIELD_LEN.
    fields = [nested(1, number(1, length)) for length in shape.field_lengths]
    description = [nested(9, nested(2, *fields))] if fields else []
    head = [text(1, table), text(2, name), number(3, flags)]
    key = [number(4, shape.key_type), number(5, shape.key_length)]
    return message(NEW_SET, CREATE, *head, *key, *value, *description, number(10, identifier), *user_data)


def new_stuck_set(table: str, stick: Stick, name: str, identifier: int) -> bytes:
    """Encode the message that makes the set of the clients of one endpoint of a sticky group."""
    return message(
        *(NEW_SET, CREATE, text(1, table), text(2, name), number(3, STUCK.flags)),
        *(number(4, STUCK.key_type), number(5, STUCK.key_length)),
        *(nested(9, number(1, _STUCK_LIMIT)), number(10, identifier)),
        attribute(11, struct.pack(">Q", stick.timeout_seconds * 1000)),
    )


def new_chain(table: str, name: str, chain: Chain) -> list[bytes]:
    """Encode the messages that make a chain, without its rules."""
    attributes = [text(1, table), text(3, name)]
    if chain.hook is not None:
        place = nested(4, number(1, chain.hook.point), number(2, chain.hook.priority))
        attributes += [text(7, chain.hook.kind), number(5, ACCEPT), place]
    return [message(NEW_CHAIN, CREATE, *attributes)]


def new_rules(table: str, name: str, chain: Chain) -> list[bytes]:
    """Encode the messages that fill a chain."""
    return [
        message(
            *(NEW_RULE, CREATE | APPEND, text(1, table), text(2, name)),
            *(nested(4, rule), attribute(7, _comment(digest(rule)))),
        )
        for rule in chain.rules
    ]


def _comment(value: str) -> bytes:
    data = value.encode() + b"\0"
    return bytes([0, len(data)]) + data


def comment(user_data: bytes) -> str:
    """Read a rule's comment; empty when it has none."""
    offset = 0
    while offset + 2 <= len(user_data):
        kind, length = user_data[offset], user_data[offset + 1]
        if kind == 0:
            return as_text(user_data[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""
