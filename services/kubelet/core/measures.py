"""Counters, gauges and histograms with labels, and their page as Prometheus text. Pure.

A measure belongs to one event loop. What has labels of pods is dropped with them by `forget`.

Source: the Prometheus text format 0.0.4. prometheus_client would cost 2 MB and a server of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from services.common.gauges import labelled

DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Measure(Protocol):
    """Something with a page."""

    def lines(self) -> Iterator[str]:
        """Yield its lines, without line feeds; none when nothing was measured."""
        ...


def page(measures: Iterable[Measure]) -> bytes:
    """Write measures, one after the other."""
    return "".join(f"{line}\n" for measure in measures for line in measure.lines()).encode()


def number(value: float) -> str:
    """Write a value, whole numbers without a fraction."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


class Counter:
    """Counts, by the values of its labels."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self._name = name
        self._help = help_text
        self._labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, *values: str, by: float = 1.0) -> None:
        """Count up."""
        self._values[values] = self._values.get(values, 0.0) + by

    def value(self, *values: str) -> float:
        """Return how much was counted."""
        return self._values.get(values, 0.0)

    def forget(self, wanted: Callable[[tuple[str, ...]], bool]) -> None:
        """Drop what is not wanted any more."""
        self._values = {key: value for key, value in self._values.items() if wanted(key)}

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        if self._values:
            yield from (f"# HELP {self._name} {self._help}", f"# TYPE {self._name} {self.kind}")
        for values, value in self._values.items():
            yield f"{labelled(self._name, self._labels, values)} {number(value)}"


class Gauge(Counter):
    """A value that goes up and down."""

    kind = "gauge"

    def set(self, value: float, *values: str) -> None:
        """Set it."""
        self._values[values] = value


class Histogram:
    """Counts durations in buckets, by the values of its labels. `buckets` are upper ends, ascending."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> None:
        self._name = name
        self._help = help_text
        self._labels = tuple(labels)
        self._buckets = tuple(buckets)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count one duration in seconds."""
        counts = self._counts.setdefault(values, [0] * (len(self._buckets) + 1))
        counts[bisect_left(self._buckets, value)] += 1
        self._sums[values] = self._sums.get(values, 0.0) + value

    def count(self, *values: str) -> int:
        """Return how many were counted."""
        return sum(self._counts.get(values, ()))

    def forget(self, wanted: Callable[[tuple[str, ...]], bool]) -> None:
        """Drop what is not wanted any more."""
        self._counts = {key: counts for key, counts in self._counts.items() if wanted(key)}
        self._sums = {key: total for key, total in self._sums.items() if wanted(key)}

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        if self._counts:
            yield from (f"# HELP {self._name} {self._help}", f"# TYPE {self._name} histogram")
        for values, counts in self._counts.items():
            total = 0
            for end, count in zip((*map(number, self._buckets), "+Inf"), counts, strict=True):
                total += count
                yield f"{labelled(f'{self._name}_bucket', self._labels, values, _le(end))} {total}"
            yield f"{labelled(f'{self._name}_sum', self._labels, values)} {self._sums[values]!r}"
            yield f"{labelled(f'{self._name}_count', self._labels, values)} {total}"


def _le(end: str) -> str:
    return f'le="{end}"'
