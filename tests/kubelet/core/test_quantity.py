"""Quantities, exact and canonical."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.core import quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.5", Fraction(3, 2)),
        ("100m", Fraction(1, 10)),
        ("1Ki", 1024),
        ("1k", 1000),
        ("1e3", 1000),
        (".5", Fraction(1, 2)),
        ("1.", 1),
        ("5n", Fraction(5, 10**9)),
        ("-1", -1),
        ("1E", 10**18),
    ],
)
def test_a_quantity_is_exact(text: str, value: Fraction) -> None:
    """No float comes near it."""
    assert quantity.parse(text) == value


@pytest.mark.parametrize("text", ["", "1_000", "1 Mi", "64MB", "0x10", "1e", "nan", "1" * 100, "--1"])
def test_other_text_is_refused(text: str) -> None:
    """What Kubernetes does not read, we do not."""
    with pytest.raises(quantity.QuantityError):
        quantity.parse(text)


@given(st.integers(0, 10**15))
def test_bytes_written_are_read_back(value: int) -> None:
    """The canonical form loses nothing."""
    assert quantity.whole(quantity.format_bytes(value)) == value


@given(st.integers(0, 10**9))
def test_millicores_written_are_read_back(value: int) -> None:
    """The canonical form loses nothing."""
    assert quantity.millicores(quantity.format_millicores(value)) == value


def test_a_part_is_rounded_up() -> None:
    """Half a millicore is one; nothing is given for free."""
    assert quantity.millicores("0.5m") == 1
