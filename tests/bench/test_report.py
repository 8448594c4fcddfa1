"""Bars, rows and what is printed of them."""

from __future__ import annotations

import json
import math

import pytest

from bench.report import Bar, Result, Row, document, percentile, table


@pytest.mark.parametrize(
    ("bar", "held"),
    [
        pytest.param(Bar("b", 1.0, 1.0, "s"), True, id="at-most-includes-the-limit"),
        pytest.param(Bar("b", 1.1, 1.0, "s"), False, id="above-is-missed"),
        pytest.param(Bar("b", 0.9, 1.0, "s", at_least=True), False, id="below-at-least-is-missed"),
        pytest.param(Bar("b", math.nan, 1.0, "s"), False, id="not-measured-is-missed"),
        pytest.param(
            Bar("b", math.nan, 1.0, "s", at_least=True), False, id="not-measured-is-missed-either-way"
        ),
    ],
)
def test_a_bar_holds_or_not(bar: Bar, *, held: bool) -> None:
    """A result holds when all its bars do."""
    assert bar.held is held
    assert Result([], [bar]).held is held


def test_a_row_is_put_beside_its_peer() -> None:
    """The ratio says more than the seconds of one machine."""
    result = Result([Row("load", 3.0, "s", "bare load", 2.0), Row("alone", 1.0, "s")], [])

    assert [row.ratio for row in result.rows] == [1.5, None]
    assert "1.50 x bare load" in table("t", result)
    assert json.loads(json.dumps(document("t", result)))["rows"][0]["ratio"] == 1.5


def test_a_percentile_is_one_of_the_values() -> None:
    """The nearest rank; of nothing it is not a number."""
    assert percentile([3, 1, 2, 4], 50) == 2
    assert percentile([3, 1, 2, 4], 99) == 4
    assert math.isnan(percentile([], 50))
