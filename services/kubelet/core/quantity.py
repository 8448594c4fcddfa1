"""Kubernetes quantities, exact: `100m`, `1.5`, `64Mi`, `1e3`. Pure.

Source: k8s.io/apimachinery `resource.Quantity`: a decimal number and one suffix
out of n u m (none) k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_FORM = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:([eE][+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i))?", re.ASCII)
_TEXT_LIMIT = 64
_MAX = 2**63 - 1


class QuantityError(ValueError):
    """Text that is no quantity; says why."""


def parse(text: str) -> Fraction:
    """Read a quantity exactly. Raises `QuantityError`."""
    match = _FORM.fullmatch(text) if len(text) <= _TEXT_LIMIT else None
    if match is None:
        raise QuantityError(f"{text!r} is no quantity; write such as 100m, 0.5, 64Mi or 1G")
    sign, digits, exponent, suffix = match.groups()
    number = Fraction(digits if not digits.endswith(".") else digits[:-1])
    if exponent:
        number *= Fraction(10) ** int(exponent[1:])
    elif suffix in _BINARY:
        number *= 2 ** _BINARY[suffix]
    else:
        number *= Fraction(10) ** _DECIMAL[suffix or ""]
    return -number if sign == "-" else number


def rounded_up(value: Fraction) -> int:
    """Round away from zero to a whole number, as Kubernetes does."""
    return -(-value.numerator // value.denominator) if value >= 0 else value.numerator // value.denominator


def millicores(text: str) -> int:
    """Read CPU in thousandths of a core, rounded up. Raises `QuantityError` when negative."""
    return _natural(text, 1000)


def whole(text: str) -> int:
    """Read a count such as bytes, rounded up. Raises `QuantityError` when negative."""
    return _natural(text, 1)


def _natural(text: str, scale: int) -> int:
    value = parse(text)
    if value < 0:
        raise QuantityError(f"{text!r} is negative")
    found = rounded_up(value * scale)
    if found > _MAX:
        raise QuantityError(f"{text!r} is more than any node has")
    return found


def format_millicores(value: int) -> str:
    """Write CPU in its canonical form: `2`, `1500m`."""
    return str(value // 1000) if value % 1000 == 0 else f"{value}m"


def format_bytes(value: int) -> str:
    """Write bytes in the largest binary unit that keeps them exact: `64Mi`, `1000`."""
    for suffix, power in reversed(_BINARY.items()):
        if value and value % 2**power == 0:
            return f"{value >> power}{suffix}"
    return str(value)
