"""The elements of our maps and sets as the kernel has them. No I/O.

Every element of a set has the same length, but for the name of the chain in a
verdict, so that most of its bytes are the same in all. Tens of thousands are encoded
by putting the few that differ between them.

Source: linux/netfilter/nf_tables.h, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from socket import htons, inet_aton, inet_ntoa, ntohs

from services.proxy.adapters.nfframe import GOTO, SETS, chain_name, verdict
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
    pairs,
    text,
)
from services.proxy.core.ruleset import Place, Ruleset, Slot, Target

_ELEMENT, _KEY, _VALUE = 1, 1, 2
# A nested attribute's length has 16 bits.
_LIST_BYTES = 60_000
_PLACE = struct.Struct("=4sB3xH2x")
_SLOT = struct.Struct("=4sB3xH2xI")
_TARGET = struct.Struct("=4sH2x")
_NUMBERS = {"tcp": 6, "udp": 17}
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


def _services(values: Mapping[Place, int]) -> list[bytes]:
    around = {
        count: _around(SETS["service-ips"].key_length, nested(_VALUE, verdict(GOTO, chain_name(count))))
        for count in set(values.values())
    }
    return [around[count][0] + _place(place) + around[count][1] for place, count in values.items()]


def _plain(rules: Ruleset) -> Iterator[tuple[str, list[bytes]]]:
    yield "refused", _keys_only("refused", map(_place, rules.refused))
    yield "cluster-ips", _keys_only("cluster-ips", map(inet_aton, rules.addresses))
    yield "hairpins", _keys_only("hairpins", (inet_aton(address) * 2 for address in rules.hairpins))


def added(table: str, rules: Ruleset) -> Iterator[bytes]:
    """Encode the messages that add a ruleset's elements."""
    values = [("endpoints", _endpoints(rules.endpoints)), ("service-ips", _services(rules.services))]
    return _messages(NEW_ELEMENTS, CREATE, table, [*values, *_plain(rules)])


def deleted(table: str, rules: Ruleset) -> Iterator[bytes]:
    """Encode the messages that delete a ruleset's elements."""
    values = [
        ("service-ips", _keys_only("service-ips", map(_place, rules.services))),
        ("endpoints", _keys_only("endpoints", map(_slot, rules.endpoints))),
    ]
    return _messages(DELETE_ELEMENTS, 0, table, [*values, *_plain(rules)])


def _messages(
    kind: int, flags: int, table: str, values: Iterable[tuple[str, list[bytes]]]
) -> Iterator[bytes]:
    for name, elements in values:
        for piece in chunks(elements, _LIST_BYTES):
            yield message(kind, flags, text(1, table), text(2, name), nested(3, piece))


def read(found: Mapping[str, Iterable[bytes]], chains: Iterable[int]) -> Ruleset:
    """Read lists of elements by set. Raises ValueError for elements that we do not make."""
    return Ruleset(
        endpoints=dict(_read_endpoints(found)),
        services={_as_place(key): _count(value) for key, value in _split("service-ips", found)},
        refused=frozenset(_as_place(key) for key in _alone("refused", found)),
        addresses=frozenset(map(inet_ntoa, _alone("cluster-ips", found))),
        hairpins=frozenset(inet_ntoa(key[:4]) for key in _alone("hairpins", found)),
        chains=frozenset(chains),
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


@cache
def _count(behind: bytes) -> int:
    """Return the number of endpoints of the chain that a verdict leads to; 0 when it is none of ours."""
    outer = attributes(behind)
    if list(outer) != [_VALUE]:
        raise ValueError("service-ips has an element with more than a verdict")
    found = attributes(attributes(outer[_VALUE]).get(2, b""))
    name = as_text(found.get(2, b""))
    count = name.removeprefix("lb-")
    goto = as_number(found.get(1, b"")) == GOTO & 0xFFFFFFFF
    return int(count) if goto and count.isdigit() and name == chain_name(int(count)) else 0
