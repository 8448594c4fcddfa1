"""Small kernel files: numbers, and lines of a name and a number. Pure.

What is not there is 0 or absent: a controller may be switched off, and a file may
be older or newer than this code.
"""

from __future__ import annotations

# cgroup v1 writes "no limit" as the largest multiple of a page below 2^63.
_UNLIMITED = 1 << 62


def number(content: bytes, default: int = 0) -> int:
    """Read one number; `max` and nonsense give `default`."""
    try:
        return int(content)
    except ValueError:
        return default


def limit(content: bytes) -> int:
    """Read a limit; none gives 0."""
    value = number(content)
    return 0 if value >= _UNLIMITED or value < 0 else value


def pairs(content: bytes) -> dict[str, int]:
    """Read lines such as `anon 4096`; others are left out."""
    found: dict[str, int] = {}
    for line in content.splitlines():
        name, _, value = line.partition(b" ")
        try:
            found[name.decode()] = int(value)
        except ValueError:
            continue
    return found
