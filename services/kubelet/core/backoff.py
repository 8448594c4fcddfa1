"""How long to wait before the next try. Pure.

Source: the kubelet's crash-loop and image back-off: 10 s, doubled by each failure
up to 300 s, forgotten after 10 minutes of good running.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SECONDS = 10.0
LAST_SECONDS = 300.0
RESET_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """The wait after the latest failure, and when that was (monotonic seconds)."""

    delay_seconds: float
    failed_at: float

    def due(self) -> float:
        """Return when the next try may be."""
        return self.failed_at + self.delay_seconds


def after_failure(previous: Backoff | None, now: float, *, good_seconds: float = 0.0) -> Backoff:
    """Return the wait after one more failure; `good_seconds` is how long it had worked before."""
    if previous is None or good_seconds >= RESET_SECONDS:
        return Backoff(FIRST_SECONDS, now)
    return Backoff(min(LAST_SECONDS, previous.delay_seconds * 2), now)
