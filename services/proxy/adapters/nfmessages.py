"""Messages of nfnetlink: attributes, batches, and how to read them. No I/O.

A batch is one transaction: the kernel carries out all of it or nothing.

Source: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NFTABLES, CONNTRACK = 10, 1  # NFNL_SUBSYS_...
NEW_TABLE, GET_TABLE, DELETE_TABLE = 0, 1, 2  # NFT_MSG_...
NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = 3, 4, 5
NEW_RULE, GET_RULE, DELETE_RULE = 6, 7, 8
NEW_SET, GET_SET, DELETE_SET = 9, 10, 11
NEW_ELEMENTS, DELETE_ELEMENTS, GET_ELEMENTS = 12, 14, 13
NEW_GENERATION = 15
ERROR, DONE = 2, 3  # NLMSG_...
INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
CREATE, APPEND, DUMP = 0x400, 0x800, 0x300  # NLM_F_...
_REQUEST, ACKNOWLEDGE = 0x1, 0x4
_BATCH_BEGIN, _BATCH_END = 16, 17  # NFNL_MSG_BATCH_...
_IPV4 = 2  # NFPROTO_IPV4
_NESTED = 0x8000
_KIND_MASK = 0x3FFF
_HEAD = struct.Struct("=IHHII")
_FAMILY = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Message:
    """One received message; `body` begins after both heads."""

    subsystem: int
    kind: int
    flags: int
    sequence: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute; its value is shorter than 64 KiB."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    """Encode a string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """Encode 32 bits in network order; a negative number as its complement."""
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode attributes within one."""
    return attribute(kind | _NESTED, b"".join(attributes))


def message(kind: int, flags: int, *attributes: bytes, subsystem: int = NFTABLES) -> bytes:
    """Encode one message of family `ip`."""
    return _message(subsystem << 8 | kind, flags, _FAMILY.pack(_IPV4, 0, 0) + b"".join(attributes))


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEAD.pack(_HEAD.size + len(body), kind, _REQUEST | flags, 0, 0) + body


def batch(messages: Sequence[bytes]) -> bytes:
    """Put messages into one transaction, numbered from 1. The last one is acknowledged."""
    edge = struct.pack("=BB", 0, 0) + struct.pack(">H", NFTABLES)
    whole = [_message(_BATCH_BEGIN, 0, edge), *messages, _message(_BATCH_END, 0, edge)]
    return b"".join(
        numbered(one, sequence, ACKNOWLEDGE if sequence == len(messages) else 0)
        for sequence, one in enumerate(whole)
    )


def numbered(one: bytes, sequence: int, flags: int = 0) -> bytes:
    """Give a message its sequence number, and further flags."""
    length, kind, present, _, _ = _HEAD.unpack_from(one)
    return _HEAD.pack(length, kind, present | flags, sequence, 0) + one[_HEAD.size :]


def messages(data: bytes) -> Iterator[Message]:
    """Read the messages of a datagram. Torn ones are passed over."""
    offset = 0
    while offset + _HEAD.size <= len(data):
        length, kind, flags, sequence, _ = _HEAD.unpack_from(data, offset)
        if length < _HEAD.size or offset + length > len(data):
            return
        # The kernel's own kinds have no family behind the head.
        begin = offset + _HEAD.size + (_FAMILY.size if kind >> 8 else 0)
        yield Message(kind >> 8, kind & 0xFF, flags, sequence, data[begin : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Read attributes by kind; of those that repeat, the last."""
    return dict(pairs(data))


def pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Read attributes in order."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _KIND_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def as_text(value: bytes) -> str:
    """Read a string."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


def as_number(value: bytes) -> int:
    """Read a number in network order."""
    return int.from_bytes(value, "big")


def chunks(values: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Join values into pieces of at most `limit` bytes; no value is longer."""
    piece: list[bytes] = []
    size = 0
    for value in values:
        if size + len(value) > limit:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(value)
        size += len(value)
    if piece:
        yield b"".join(piece)
