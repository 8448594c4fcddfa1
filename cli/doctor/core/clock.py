"""Judge the clock."""

from __future__ import annotations

from collections.abc import Iterator

from cli.doctor.facts import ClockFacts
from cli.doctor.finding import Finding, broken, ok, unseen, warn

_LEAST_YEAR = 2025
_STEP_SECONDS = 0.1
_SYNC = "timedatectl set-ntp true, or apt-get install chrony"


def judge(facts: ClockFacts) -> Iterator[Finding]:
    """Say whether times can be trusted."""
    if facts.year < _LEAST_YEAR:
        yield broken(
            f"The clock says that it is {facts.year}",
            "Certificates of registries are not valid yet: images cannot be pulled.",
            f"date -s ..., then {_SYNC}",
        )
    if facts.synchronised is None:
        yield unseen("Synchronisation of the clock", "neither timedatectl nor the kernel tells", "")
    elif facts.synchronised:
        error = f", within {facts.error_seconds * 1000:.0f} ms" if facts.error_seconds is not None else ""
        yield ok(f"The clock is synchronised, says {facts.source}{error}")
    else:
        yield warn(
            f"The clock is not synchronised, says {facts.source}",
            "Logs and traces of several machines cannot be compared. Tripod measures no length with it.",
            _SYNC,
        )
    if abs(facts.step_seconds) > _STEP_SECONDS:
        yield warn(
            f"The wall clock jumped by {facts.step_seconds:+.2f} s while it was looked at",
            "Times of events and logs will not be in order.",
            "Let one program only set the clock.",
        )
    else:
        yield ok("The wall clock runs as the monotonic one")
