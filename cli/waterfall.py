"""Draw a trace as a waterfall, and find what no span explains. Pure.

A gap is time of the root, up to the end of the whole trace, in which no other
span runs. Source of the layout: Jaeger's timeline, with one row for each span.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

BAR_COLUMNS = 40


@dataclass(frozen=True, slots=True)
class Span:
    """One span; times in nanoseconds since the epoch."""

    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    failed: bool = False
    message: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    events: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Gap:
    """Time that no span below the root explains, in nanoseconds since the epoch."""

    start_ns: int
    end_ns: int


def roots(spans: Sequence[Span]) -> list[Span]:
    """Return spans without a parent among `spans`, by start."""
    known = {span.span_id for span in spans}
    return sorted((s for s in spans if s.parent_id not in known), key=lambda s: s.start_ns)


def orphans(spans: Sequence[Span]) -> list[Span]:
    """Return spans whose parent is named but missing."""
    return [span for span in roots(spans) if span.parent_id]


def gaps(spans: Sequence[Span]) -> list[Gap]:
    """Return the stretches of the trace, from its start to its end, in which only the root runs."""
    if not spans:
        return []
    top = {span.span_id for span in roots(spans) if not span.parent_id}
    begin, end = min(s.start_ns for s in spans), max(s.end_ns for s in spans)
    covered = begin
    found = []
    for span in sorted((s for s in spans if s.span_id not in top), key=lambda s: s.start_ns):
        if span.start_ns > covered:
            found.append(Gap(covered, span.start_ns))
        covered = max(covered, span.end_ns)
    return [*found, Gap(covered, end)] if covered < end else found


def gap_share(spans: Sequence[Span]) -> float:
    """Return the unexplained share of the trace, 0 to 1."""
    if not spans:
        return 0.0
    total = max(s.end_ns for s in spans) - min(s.start_ns for s in spans)
    return sum(gap.end_ns - gap.start_ns for gap in gaps(spans)) / total if total else 0.0


def ordered(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """Return the spans depth first, each with its depth; children by start."""
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda s: s.start_ns):
        children.setdefault(span.parent_id, []).append(span)

    def below(span: Span, depth: int) -> Iterable[tuple[int, Span]]:
        yield depth, span
        for child in children.get(span.span_id, []):
            yield from below(child, depth + 1)

    return [row for root in roots(spans) for row in below(root, 0)]


def bar(start_ns: int, end_ns: int, *, begin_ns: int, total_ns: int) -> str:
    """Draw one bar of `BAR_COLUMNS` columns; every span gets one column at least."""
    first = min(BAR_COLUMNS - 1, (start_ns - begin_ns) * BAR_COLUMNS // total_ns)
    last = max(first + 1, min(BAR_COLUMNS, -(-(end_ns - begin_ns) * BAR_COLUMNS // total_ns)))
    return " " * first + "█" * (last - first) + " " * (BAR_COLUMNS - last)


def milliseconds(nanoseconds: int) -> str:
    """Write a duration: `0.4 ms`, `37 ms`, `1.24 s`."""
    ms = nanoseconds / 1e6
    if ms < 10:
        return f"{ms:.1f} ms"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def render(trace_id: str, spans: Sequence[Span], *, verbose: bool = False) -> str:
    """Draw the whole trace."""
    begin = min(s.start_ns for s in spans)
    total = max(1, max(s.end_ns for s in spans) - begin)
    rows = ordered(spans)
    width = max(2 * depth + len(span.name) for depth, span in rows)
    services = max(len(span.service) for span in spans)
    lines = [f"Trace {trace_id}: {milliseconds(total)}, {len(spans)} spans of {_services(spans)}", ""]
    for depth, span in rows:
        drawn = bar(span.start_ns, span.end_ns, begin_ns=begin, total_ns=total)
        offset, length = milliseconds(span.start_ns - begin), milliseconds(span.end_ns - span.start_ns)
        label = ("  " * depth + span.name).ljust(width)
        failed = f"  FAILED {span.message}" if span.failed else ""
        lines.append(
            f"{label}  {span.service.ljust(services)}  |{drawn}| {offset:>8} + {length:>8}{failed}".rstrip()
        )
        lines += _details(span, depth, begin) if verbose else []
    return "\n".join([*lines, "", *_summary(spans, begin)])


def _services(spans: Sequence[Span]) -> str:
    return ", ".join(sorted({span.service for span in spans}))


def _details(span: Span, depth: int, begin: int) -> list[str]:
    pad = "  " * depth + "    "
    lines = [f"{pad}{key}={value}" for key, value in sorted(span.attributes.items())]
    return lines + [f"{pad}@{milliseconds(at - begin)} {name}" for at, name in span.events]


def _summary(spans: Sequence[Span], begin: int) -> list[str]:
    share = gap_share(spans)
    lines = [f"Unexplained: {share:.1%} of the time"]
    longest = max(gaps(spans), key=lambda gap: gap.end_ns - gap.start_ns, default=None)
    if longest is not None and share > 0.01:
        length = milliseconds(longest.end_ns - longest.start_ns)
        lines[0] += f"; the longest gap is {length} at {milliseconds(longest.start_ns - begin)}"
    missing = orphans(spans)
    if missing:
        lines.append(f"{len(missing)} spans have a parent that no service remembers: {missing[0].name}")
    slowest = max((s for s in spans if s.parent_id), key=lambda s: s.end_ns - s.start_ns, default=None)
    if slowest is not None:
        lines.append(f"Slowest step: {slowest.name} ({milliseconds(slowest.end_ns - slowest.start_ns)})")
    return lines
