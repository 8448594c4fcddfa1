"""What the waterfall shows and what it finds."""

from __future__ import annotations

import pytest

from cli.waterfall import Gap, Span, bar, gap_share, gaps, milliseconds, ordered, orphans, render

MS = 1_000_000


def a_span(span_id: str, start: int, end: int, parent: str = "") -> Span:
    """Make a span; times in milliseconds."""
    return Span(span_id, parent, f"name-{span_id}", "kubelet", start * MS, end * MS)


ROOT = a_span("r", 0, 100)


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        pytest.param([a_span("a", 0, 100, "r")], [], id="a-child-that-fills-the-root-leaves-none"),
        pytest.param(
            [a_span("a", 0, 40, "r"), a_span("b", 60, 100, "r")], [Gap(40 * MS, 60 * MS)], id="between"
        ),
        pytest.param(
            [a_span("a", 10, 90, "r")], [Gap(0, 10 * MS), Gap(90 * MS, 100 * MS)], id="at-both-ends"
        ),
        pytest.param(
            [a_span("a", 0, 50, "r"), a_span("b", 40, 100, "a")], [], id="overlapping-spans-leave-none"
        ),
        pytest.param([a_span("a", 0, 120, "r")], [], id="a-child-may-outlive-the-root"),
    ],
)
def test_a_gap_is_time_in_which_only_the_root_runs(children: list[Span], expected: list[Gap]) -> None:
    """Unexplained time is found wherever it is."""
    assert gaps([ROOT, *children]) == expected


def test_the_share_of_gaps_counts_the_whole_trace() -> None:
    """20 of 100 milliseconds are a fifth."""
    assert gap_share([ROOT, a_span("a", 0, 80, "r")]) == pytest.approx(0.2)


def test_spans_are_drawn_depth_first_by_start() -> None:
    """Children stand under their parent, whoever made them."""
    spans = [a_span("b", 50, 60, "r"), a_span("c", 12, 13, "a"), ROOT, a_span("a", 10, 20, "r")]

    assert [(depth, span.span_id) for depth, span in ordered(spans)] == [
        (0, "r"),
        (1, "a"),
        (2, "c"),
        (1, "b"),
    ]


def test_a_span_whose_parent_nobody_remembers_is_shown_and_named() -> None:
    """A missing parent costs no row."""
    lost = a_span("x", 5, 6, "gone")

    text = render("0" * 32, [ROOT, lost])

    assert orphans([ROOT, lost]) == [lost]
    assert "name-x" in text
    assert "1 spans have a parent that no service remembers: name-x" in text


def test_every_span_gets_a_column() -> None:
    """A microsecond at the very end is still seen."""
    drawn = bar(100 * MS, 100 * MS, begin_ns=0, total_ns=100 * MS)

    assert drawn.count("█") == 1
    assert len(drawn) == 40


@pytest.mark.parametrize(
    ("nanoseconds", "expected"), [(400_000, "0.4 ms"), (37 * MS, "37 ms"), (1240 * MS, "1.24 s")]
)
def test_durations_are_short(nanoseconds: int, expected: str) -> None:
    """Three digits are enough to see what is slow."""
    assert milliseconds(nanoseconds) == expected
