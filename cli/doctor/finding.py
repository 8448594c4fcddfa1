"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How one thing is. `UNSEEN`: it could not be looked at."""

    OK = "ok"
    WARN = "warn"
    BROKEN = "broken"
    UNSEEN = "unseen"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, why it matters, and how to mend it: a command where there is one."""

    level: Level
    what: str
    why: str = ""
    fix: str = ""


def ok(what: str) -> Finding:
    """Say that a thing is as it should be."""
    return Finding(Level.OK, what)


def warn(what: str, why: str, fix: str) -> Finding:
    """Say that a thing works less well than it could, or may break."""
    return Finding(Level.WARN, what, why, fix)


def broken(what: str, why: str, fix: str) -> Finding:
    """Say that pods, services or statistics cannot work as promised."""
    return Finding(Level.BROKEN, what, why, fix)


def unseen(what: str, why: str, fix: str = "Run as root to see it.") -> Finding:
    """Say that a thing could not be looked at."""
    return Finding(Level.UNSEEN, what, why, fix)


def size(count: float) -> str:
    """Write a number of bytes: `512 MiB`, `3.4 GiB`."""
    if count < 1 << 30:
        return f"{count / (1 << 20):.0f} MiB"
    return f"{count / (1 << 30):.1f} GiB"
