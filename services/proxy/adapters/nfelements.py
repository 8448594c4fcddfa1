"""The elements of our maps and sets as the kernel has them. No I/O.

Every element of a set has the same length, but for the name of the chain in a
verdict, so that most of its bytes are the same in all. Tens of thousands are encoded
by putting the few that differ between them.

Source: linux/netfilter/nf_tables.h, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from socket import htons, inet_aton, inet_ntoa, ntohs

from services.proxy.adapters.nfframe import GOTO, PROTOCOL_NUMBERS, SETS, dropping, verdict
from services.proxy.adapters.nfmessages import (
    CREATE,
    DELETE_ELEMENTS,
    NEW_ELEMENTS,
    as_number,
    as_text,
    attribute,
    attributes,
    chunks,
    message,
    nested,
    number,
    pairs,
    text,
)
from services.proxy.core import ways
from services.proxy.core.ruleset import Allowed, Masquerade, Place, Ruleset, Slot, Stick, Target
from services.proxy.core.ways import DROP, REMEMBERED, Way

_ELEMENT, _KEY, _VALUE = 1, 1, 2
# A nested attribute's length has 16 bits.
_LIST_BYTES = 60_000
_PLACE = struct.Struct("=4sB3xH2x")
_SLOT = struct.Struct("=4sB3xH2xI")
_TARGET = struct.Struct("=4sH2x")
_NUMBERS = PROTOCOL_NUMBERS
_FLAGS, _KEY_END = 3, 10  # NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY_END
_INTERVAL_END = number(_FLAGS, 1)
_NAMES = {number: name for name, number in _NUMBERS.items()}


def _place(place: Place) -> bytes:
    return _PLACE.pack(inet_aton(place[0]), _NUMBERS[place[1]], htons(place[2]))


def _slot(slot: Slot) -> bytes:
    return _SLOT.pack(inet_aton(slot[0]), _NUMBERS[slot[1]], htons(slot[2]), slot[3])


def _around(key_length: int, value: bytes) -> tuple[bytes, bytes]:
    """Return what is before and behind the key of an element with this value (encoded, or empty)."""
    whole = nested(_ELEMENT, nested(_KEY, attribute(1, bytes(key_length))) + value)
    end = len(whole) - len(value)
    return whole[: end - key_length], whole[end:]


def _keys_only(name: str, keys: Iterable[bytes]) -> list[bytes]:
    before, _ = _around(SETS[name].key_length, b"")
    return [before + key for key in keys]


def _endpoints(values: Mapping[Slot, Target]) -> list[bytes]:
    before, behind = _around(SETS["endpoints"].key_length, nested(_VALUE, attribute(1, bytes(_TARGET.size))))
    behind = behind[: -_TARGET.size]
    # One call packs the whole element.
    pack = struct.Struct(f"={len(before)}s4sB3xH2xI{len(behind)}s4sH2x").pack
    return [
        pack(before, inet_aton(ip), _NUMBERS[protocol], htons(port), index, behind, inet_aton(to), htons(at))
        for (ip, protocol, port, index), (to, at) in values.items()
    ]


def _verdict(way: Way) -> bytes:
    return dropping() if way == DROP else verdict(GOTO, ways.name(way))


def _led(name: str, values: Mapping[Place, Way]) -> list[bytes]:
    around = {
        way: _around(SETS[name].key_length, nested(_VALUE, _verdict(way))) for way in set(values.values())
    }
    return [around[way][0] + _place(place) + around[way][1] for place, way in values.items()]


def _plain(rules: Ruleset) -> Iterator[tuple[str, list[bytes]]]:
    yield "refused", _keys_only("refused", map(_place, rules.refused))
    yield "cluster-ips", _keys_only("cluster-ips", map(inet_aton, rules.addresses))
    yield "hairpins", _keys_only("hairpins", (inet_aton(address) * 2 for address in rules.hairpins))
    yield "guarded", _keys_only("guarded", map(_place, rules.guarded))
    yield "pods", [edge for network in sorted(rules.pods) for edge in _interval(network)]
    yield "allowed", [_range(one) for one in rules.allowed]


def _interval(network: str) -> Iterator[bytes]:
    """Encode where a network begins, and what is the first address behind it, if there is one."""
    found = IPv4Network(network)
    yield nested(_ELEMENT, nested(_KEY, attribute(1, found.network_address.packed)))
    behind = int(found.broadcast_address) + 1
    if behind < 1 << 32:
        key = nested(_KEY, attribute(1, behind.to_bytes(4, "big")))
        yield nested(_ELEMENT, key, _INTERVAL_END)


def _range(one: Allowed) -> bytes:
    place, found = _place(one[:3]), IPv4Network(one[3])
    first, last = found.network_address.packed, found.broadcast_address.packed
    return nested(
        _ELEMENT,
        nested(_KEY, attribute(1, place + first)),
        nested(_KEY_END, attribute(1, place + last)),
    )


def added(table: str, rules: Ruleset) -> Iterator[bytes]:
    """Encode the messages that add a ruleset's elements."""
    masquerades = {place: who.value for place, who in rules.masquerades.items()}
    values = [
        ("endpoints", _endpoints(rules.endpoints)),
        ("masquerades", _led("masquerades", masquerades)),
        ("service-ips", _led("service-ips", rules.services)),
    ]
    return _messages(NEW_ELEMENTS, CREATE, table, [*values, *_plain(rules)])


def deleted(table: str, rules: Ruleset) -> Iterator[bytes]:
    """Encode the messages that delete a ruleset's elements."""
    values = [
        ("service-ips", _keys_only("service-ips", map(_place, rules.services))),
        ("endpoints", _keys_only("endpoints", map(_slot, rules.endpoints))),
        ("masquerades", _keys_only("masquerades", map(_place, rules.masquerades))),
    ]
    return _messages(DELETE_ELEMENTS, 0, table, [*values, *_plain(rules)])


def _messages(
    kind: int, flags: int, table: str, values: Iterable[tuple[str, list[bytes]]]
) -> Iterator[bytes]:
    for name, elements in values:
        for piece in chunks(elements, _LIST_BYTES):
            yield message(kind, flags, text(1, table), text(2, name), nested(3, piece))


def read(
    found: Mapping[str, Iterable[bytes]], chains: Iterable[Way], sticks: Iterable[Stick] = ()
) -> Ruleset:
    """Read lists of elements by set. Raises ValueError for elements that we do not make."""
    return Ruleset(
        endpoints=dict(_read_endpoints(found)),
        services={_as_place(key): _way(value) for key, value in _split("service-ips", found)},
        refused=frozenset(_as_place(key) for key in _alone("refused", found)),
        addresses=frozenset(map(inet_ntoa, _alone("cluster-ips", found))),
        hairpins=frozenset(inet_ntoa(key[:4]) for key in _alone("hairpins", found)),
        chains=frozenset(chains),
        masquerades={_as_place(key): _masquerade(value) for key, value in _split("masquerades", found)},
        pods=frozenset(_read_intervals(found)),
        guarded=frozenset(_as_place(key) for key in _alone("guarded", found)),
        allowed=frozenset(_read_ranges(found)),
        sticks=frozenset(sticks),
    )


def _heads(length: int, outer: int) -> tuple[bytes, bytes]:
    """Return what is before a value within an attribute, as we and as the kernel write it."""
    value = attribute(1, bytes(length))
    return nested(outer, value)[:-length], attribute(outer, value)[:-length]


def _split(name: str, found: Mapping[str, Iterable[bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield each element's key and what is behind it."""
    length = SETS[name].key_length
    heads = _heads(length, _KEY)
    begin, end = len(heads[0]), len(heads[0]) + length
    for piece in found[name]:
        for _, element in pairs(piece):
            if not element.startswith(heads):
                raise ValueError(f"{name} has an element without a plain key")
            yield element[begin:end], element[end:]


def _alone(name: str, found: Mapping[str, Iterable[bytes]]) -> Iterator[bytes]:
    for key, behind in _split(name, found):
        if behind:
            raise ValueError(f"{name} has an element with more than a key")
        yield key


def _read_endpoints(found: Mapping[str, Iterable[bytes]]) -> Iterator[tuple[Slot, Target]]:
    heads = _heads(_TARGET.size, _VALUE)
    begin = len(heads[0])
    for key, behind in _split("endpoints", found):
        if len(behind) != begin + _TARGET.size or not behind.startswith(heads):
            raise ValueError("endpoints has an element with more than a target")
        address, protocol, port, index = _SLOT.unpack(key)
        target, target_port = _TARGET.unpack_from(behind, begin)
        slot = inet_ntoa(address), _protocol(protocol), ntohs(port), index
        yield slot, (inet_ntoa(target), ntohs(target_port))


def _as_place(key: bytes) -> Place:
    address, protocol, port = _PLACE.unpack(key)
    return inet_ntoa(address), _protocol(protocol), ntohs(port)


def _protocol(number: int) -> str:
    return _NAMES.get(number) or str(number)


def _read_intervals(found: Mapping[str, Iterable[bytes]]) -> Iterator[str]:
    edges = sorted((key, behind != _INTERVAL_END) for key, behind in _split("pods", found))
    if any(behind not in (b"", _INTERVAL_END) for _, behind in _split("pods", found)):
        raise ValueError("pods has an element with more than a key")
    begin: IPv4Address | None = None
    for key, begins in edges:
        if begins == (begin is not None):
            raise ValueError("pods has an interval that does not end, or not begin")
        if begin is not None:
            yield from map(str, summarize_address_range(begin, IPv4Address(key) - 1))
        begin = IPv4Address(key) if begins else None
    if begin is not None:
        yield from map(str, summarize_address_range(begin, IPv4Address("255.255.255.255")))


def _read_ranges(found: Mapping[str, Iterable[bytes]]) -> Iterator[Allowed]:
    for key, behind in _split("allowed", found):
        inner = attributes(behind)
        last = attributes(inner.get(_KEY_END, b"")).get(1, b"")
        if list(inner) != [_KEY_END] or len(last) != len(key) or last[:-4] != key[:-4]:
            raise ValueError("allowed has an element with more than a range of sources")
        first, end = IPv4Address(key[-4:]), IPv4Address(last[-4:])
        for network in summarize_address_range(first, end):
            yield (*_as_place(key[:-4]), str(network))


@lru_cache(REMEMBERED)
def _chain_of(behind: bytes) -> str:
    """Return the chain that a verdict goes to; `drop` for one that drops, nothing for any other."""
    outer = attributes(behind)
    if list(outer) != [_VALUE]:
        raise ValueError("service-ips or masquerades has an element with more than a verdict")
    found = attributes(attributes(outer[_VALUE]).get(2, b""))
    code, name = as_number(found.get(1, b"")), as_text(found.get(2, b""))
    return name if code == GOTO & 0xFFFFFFFF else DROP if code == 0 and not name else ""


@lru_cache(REMEMBERED)
def _way(behind: bytes) -> Way:
    """Read where a service leads; 0 when it is none of our ways."""
    name = _chain_of(behind)
    return DROP if name == DROP else ways.parse(name) or 0


def _masquerade(behind: bytes) -> Masquerade:
    try:
        return Masquerade(_chain_of(behind))
    except ValueError as error:
        raise ValueError("masquerades has an element that leads elsewhere") from error
