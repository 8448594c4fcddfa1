"""Small kernel files: numbers, and lines of a name and a number. Pure.

What is not there is 0 or absent: a controller may be switched off, and a file may
be older or newer than this code.
"""

from __future__ import annotations

# cgroup v1 writes "no limit" as the largest multiple of a page below 2^63.
_UNLIMITED = 1 << 62
# Whoever reads us has 63 bits for a number; more is nonsense.
_TOO_MUCH = 1 << 63


def number(content: bytes, default: int = 0) -> int:
    """Read one number from 0 to 2^63 - 1; `max`, -1 and nonsense give `default`."""
    try:
        value = int(content)
    except ValueError:
        return default
    return value if 0 <= value < _TOO_MUCH else default


def scaled(value: int, factor: int) -> int:
    """Multiply; a product that nobody can hold gives 0."""
    product = value * factor
    return product if product < _TOO_MUCH else 0


def limit(content: bytes) -> int:
    """Read a limit; none gives 0."""
    value = number(content)
    return 0 if value >= _UNLIMITED else value


def pairs(content: bytes) -> dict[str, int]:
    """Read lines such as `anon 4096`; others are left out."""
    found: dict[str, int] = {}
    for line in content.splitlines():
        name, _, text = line.partition(b" ")
        try:
            value = int(text)
            if 0 <= value < _TOO_MUCH:
                found[name.decode()] = value
        except ValueError:
            continue
    return found


def device(content: bytes) -> tuple[int, int] | None:
    """Read the number of a device such as `8:0`; None for anything else."""
    major, _, minor = content.partition(b":")
    if not (major.isdigit() and minor.isdigit() and len(major) < 9 and len(minor) < 9):
        return None
    return int(major), int(minor)
