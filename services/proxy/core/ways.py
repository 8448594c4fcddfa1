"""The chains that a service's address can lead to, by name. Pure.

A number is the chain `lb-N`, which spreads over N endpoints; most services lead to one,
and share it. The others are names:

    lo-N             spreads over the N endpoints that are on this node
    stick-GROUP      keeps each client at one endpoint; belongs to one port of one service
    split-WAY-WAY    sends what pods and this node itself send the first way, all else the second
    drop             no chain: the packet is dropped

Source: Kubernetes, `externalTrafficPolicy`, `internalTrafficPolicy`, `sessionAffinity`.
"""

from __future__ import annotations

import re
from functools import lru_cache

Way = int | str
DROP = "drop"
# How many answers of each function are kept: services that keep clients have ways of their own, and go.
REMEMBERED = 4096
# A place's local endpoints have indices from here on.
FIRST_LOCAL_INDEX = 1 << 16
_SPREAD = re.compile(r"lb-([1-9]\d*)")
_LOCAL = re.compile(r"lo-([1-9]\d*)")
_STICKY = re.compile(r"stick-([a-z2-7]+)")
_PIECE = r"(lb-[1-9]\d*|lo-[1-9]\d*|stick-[a-z2-7]+|drop)"
_SPLIT = re.compile(f"split-{_PIECE}-{_PIECE}")


def local(count: int) -> Way:
    """Return the way to a number of endpoints of this node."""
    return f"lo-{count}"


def sticky(group: str) -> Way:
    """Return the way to a group of endpoints that keep their clients."""
    return f"stick-{group}"


@lru_cache(REMEMBERED)
def split(own: Way, others: Way) -> Way:
    """Return the way that parts what pods and the node send from what comes from elsewhere."""
    return f"split-{name(own)}-{name(others)}"


@lru_cache(REMEMBERED)
def name(way: Way) -> str:
    """Return the name of a way's chain."""
    return f"lb-{way}" if isinstance(way, int) else way


def parse(text: str) -> Way | None:
    """Read a chain's name; None when it is none of these, or no chain."""
    found = _SPREAD.fullmatch(text)
    if found:
        return int(found[1])
    known = any(pattern.fullmatch(text) for pattern in (_LOCAL, _STICKY, _SPLIT))
    return text if known else None


@lru_cache(REMEMBERED)
def branch(way: Way, *, own: bool) -> Way:
    """Return what a way comes to for what pods and the node send, or for all else; it may be `drop`."""
    found = _SPLIT.fullmatch(way) if isinstance(way, str) else None
    return _piece(found[1 if own else 2]) if found else way


@lru_cache(REMEMBERED)
def branches(way: Way) -> tuple[Way, ...]:
    """Return the two ways of a split; of any other the way itself. `drop` is none."""
    pieces = dict.fromkeys(branch(way, own=own) for own in (True, False))
    return tuple(piece for piece in pieces if piece != DROP)


def _piece(text: str) -> Way:
    found = _SPREAD.fullmatch(text)
    return int(found[1]) if found else text


@lru_cache(REMEMBERED)
def shared(way: Way) -> tuple[Way, ...]:
    """Return the chains that a way needs, but for those of a sticky group, which are the group's own."""
    if isinstance(way, int):
        return (way,)
    pieces = dict.fromkeys((way, *branches(way)))
    return tuple(piece for piece in pieces if piece != DROP and not group(piece))


@lru_cache(REMEMBERED)
def indices(way: Way) -> range:
    """Return the indices of a place's endpoints along a way that is no split; a sticky one has none."""
    if isinstance(way, int):
        return range(way)
    found = _LOCAL.fullmatch(way)
    return range(FIRST_LOCAL_INDEX, FIRST_LOCAL_INDEX + int(found[1])) if found else range(0)


@lru_cache(REMEMBERED)
def group(way: Way) -> str:
    """Return the group of a sticky way; empty for any other."""
    found = _STICKY.fullmatch(way) if isinstance(way, str) else None
    return found[1] if found else ""
