"""Count durations by size, as Prometheus reads a histogram. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence


class Histogram:
    """Belongs to one thread. `bounds` are upper limits in seconds, rising."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, help_text: str) -> Iterator[str]:
        """Yield the lines of the text format."""
        yield f"# HELP {name} {help_text}\n# TYPE {name} histogram\n"
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}\n'
        yield f"{name}_sum {self._sum!r}\n{name}_count {total}\n"
