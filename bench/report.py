"""What a benchmark measured: rows beside their floor or peer, and the bars it must hold."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value; `peer_value` is its floor's or peer's, measured in the same run."""

    name: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """Return how many times the peer's value ours is; None without a peer."""
        return self.value / self.peer_value if self.peer_value else None


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit that must hold: `measured` is at most `limit`, or at least with `at_least`."""

    name: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Tell whether the bar holds. What could not be measured (NaN) does not hold."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark gives. `notes` say in what circumstances."""

    rows: Sequence[Row]
    bars: Sequence[Bar]
    notes: Sequence[str] = ()

    @property
    def held(self) -> bool:
        """Tell whether every bar holds."""
        return all(bar.held for bar in self.bars)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of all do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def table(name: str, result: Result) -> str:
    """Write a result for people."""
    lines = [
        f"{name}, on {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    ]
    for row in result.rows:
        beside = "" if row.ratio is None else f"{row.ratio:7.2f} x {row.peer} ({_number(row.peer_value)})"
        lines.append(f"  {row.name:<46} {_number(row.value):>10} {row.unit:<6} {beside}".rstrip())
    for bar in result.bars:
        mark, word = "✓" if bar.held else "✗", "at least" if bar.at_least else "at most"
        lines.append(
            f"{mark} {bar.name:<46} {_number(bar.measured):>10} {bar.unit:<6} {word} {_number(bar.limit)}"
        )
    return "\n".join([*lines, *(f"  {note}" for note in result.notes)])


def document(name: str, result: Result) -> dict[str, object]:
    """Write a result for machines."""
    return {
        "benchmark": name,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in result.rows],
        "bars": [{**asdict(bar), "held": bar.held} for bar in result.bars],
        "notes": list(result.notes),
        "held": result.held,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
