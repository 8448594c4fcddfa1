"""What this process holds: open files, threads, tasks, memory. Source: proc(5)."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from services.common import telemetry

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """Counts of one moment; `resident_bytes` is memory in RAM."""

    open_files: int
    threads: int
    tasks: int
    resident_bytes: int


def use() -> ProcessUse:
    """Look at ourselves. Call it on the event loop, whose tasks it counts."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208  # names alone; one is the listing's own
    return ProcessUse(files, threading.active_count(), len(asyncio.all_tasks()), pages * _PAGE_BYTES)


def gauges() -> dict[str, float]:
    """Return the same under the names that Prometheus clients use, and our own for tasks."""
    found = use()
    return {
        "process_open_fds": found.open_files,
        "process_threads": found.threads,
        "process_resident_memory_bytes": found.resident_bytes,
        "tripod_asyncio_tasks": found.tasks,
        "tripod_spans_dropped_total": telemetry.dropped_spans(),
    }


HELP = {
    "process_open_fds": "Open file descriptors.",
    "process_threads": "Threads.",
    "process_resident_memory_bytes": "Memory in RAM, in bytes.",
    "tripod_asyncio_tasks": "Tasks of the event loop.",
    "tripod_spans_dropped_total": "Spans that the collector never got, since the start.",
}
