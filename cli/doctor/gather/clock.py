"""Read the clock, and whether someone sets it."""

from __future__ import annotations

import ctypes
import time
from datetime import datetime

from cli import output
from cli.doctor.facts import ClockFacts
from cli.doctor.gather import host

_TIME_ERROR = 5
_STA_UNSYNC = 0x40
_LOOK_SECONDS = 0.1
_READINGS = 5
# struct timex has 208 bytes on 64-bit machines (adjtimex(2)); room for more does no harm.
_TIMEX_BYTES = 512


def gather() -> ClockFacts:
    """Look at the clock for a tenth of a second."""
    synchronised, source, error = _synchronised()
    return ClockFacts(
        year=output.now().year,
        synchronised=synchronised,
        source=source,
        error_seconds=error,
        step_seconds=_step(),
    )


def _synchronised() -> tuple[bool | None, str, float | None]:
    told = host.output(["timedatectl", "show", "-p", "NTPSynchronized", "--value"])
    if told == "yes":
        return True, "timedatectl", None
    kernel = adjtimex()
    if kernel is not None:
        return kernel[0], "the kernel", kernel[1] if kernel[0] else None
    return (False, "timedatectl", None) if told == "no" else (None, "", None)


def adjtimex() -> tuple[bool, float] | None:
    """Ask the kernel whether the clock is kept, and for its greatest error in seconds; None without answer.

    Source: adjtimex(2): `modes` 0 reads only; long fields follow it, with `maxerror` the
    third and the flags `status` the fifth.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    area = (ctypes.c_long * (_TIMEX_BYTES // ctypes.sizeof(ctypes.c_long)))()
    state = call(ctypes.byref(area))
    if state < 0:
        return None
    status = ctypes.c_int.from_buffer(area, 5 * ctypes.sizeof(ctypes.c_long)).value
    return state != _TIME_ERROR and not status & _STA_UNSYNC, area[3] / 1e6


def _step() -> float:
    """Return how much further the wall clock went than the monotonic one."""
    wall, steady = _both()
    time.sleep(_LOOK_SECONDS)
    later_wall, later_steady = _both()
    return (later_wall - wall).total_seconds() - (later_steady - steady)


def _both() -> tuple[datetime, float]:
    """Read both clocks as close together as can be: of some readings, the one that took least."""
    found = []
    for _ in range(_READINGS):
        before = time.monotonic()
        wall = output.now()
        after = time.monotonic()
        found.append((after - before, wall, (before + after) / 2))
    return min(found, key=lambda reading: reading[0])[1:]
