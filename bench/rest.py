"""What a rest costs on this machine: the same small work after a pause, beside the same at once.

A service at rest works for a moment and sleeps again, so what its wakes cost depends on the machine more than
on the code: caches that others filled, a slower clock, a hypervisor that took the mappings of its memory.
The factor tells how far two runs of a benchmark of waking processes can be compared.
"""

from __future__ import annotations

import json
import statistics
import time

from bench.report import Row

PAUSE_SECONDS = 0.3
_ROUNDS = 15
_WARM_UP = 10
# About half a million bytes in small objects, as a service touches them in one of its rounds.
_WORK = [{f"k{column}": column * row for column in range(20)} for row in range(200)]


def rested() -> Row:
    """Measure for some five seconds; the thread's CPU time in milliseconds, medians."""
    for _ in range(_WARM_UP):
        _work_ms()
    at_once = [_work_ms() for _ in range(_ROUNDS)]
    after_rest = []
    for _ in range(_ROUNDS):
        time.sleep(PAUSE_SECONDS)
        after_rest.append(_work_ms())
    return Row(
        f"Work after a rest of {PAUSE_SECONDS:g} s here",
        statistics.median(after_rest),
        "ms",
        "at once",
        statistics.median(at_once),
    )


def _work_ms() -> float:
    begin = time.thread_time()
    json.dumps(_WORK)
    return (time.thread_time() - begin) * 1e3
