"""Values from the files of cgroup v2. Pure: contents by file name.

Source: Linux Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.cadvisor.core.flatfile import device, limit, number, pairs, scaled
from services.cadvisor.core.model import Cpu, DiskIo, Memory, Processes

FILES = (
    "cpu.stat",
    "cpu.weight",
    "cpu.max",
    "memory.current",
    "memory.max",
    "memory.peak",
    "memory.stat",
    "memory.swap.current",
    "memory.events",
    "io.stat",
    "pids.current",
    "pids.max",
)
Contents = Mapping[str, bytes]


def cpu(files: Contents) -> Cpu:
    """Read CPU time; the weight is told as v1 shares, as runc converts them."""
    stat = pairs(files.get("cpu.stat", b""))
    quota, _, period = files.get("cpu.max", b"").strip().partition(b" ")
    weight = number(files.get("cpu.weight", b""))
    return Cpu(
        usage_ns=scaled(stat.get("usage_usec", 0), 1000),
        user_ns=scaled(stat.get("user_usec", 0), 1000),
        system_ns=scaled(stat.get("system_usec", 0), 1000),
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled_ns=scaled(stat.get("throttled_usec", 0), 1000),
        shares=scaled(2 + (weight - 1) * 262142 // 9999, 1) if weight else 0,
        quota_us=number(quota),
        period_us=number(period),
    )


def memory(files: Contents) -> Memory:
    """Read memory."""
    stat, events = pairs(files.get("memory.stat", b"")), pairs(files.get("memory.events", b""))
    # The root has no memory.current: what it holds is the sum of its parts.
    usage = number(files.get("memory.current", b""), scaled(stat.get("anon", 0) + stat.get("file", 0), 1))
    peak = files.get("memory.peak")
    return Memory(
        usage=usage,
        working_set=max(0, usage - stat.get("inactive_file", 0)),
        rss=stat.get("anon", 0),
        cache=stat.get("file", 0),
        mapped_file=stat.get("file_mapped", 0),
        swap=number(files.get("memory.swap.current", b"")),
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        limit=limit(files.get("memory.max", b"")),
        failures=events.get("max", 0),
        oom_kills=events.get("oom_kill"),
        max_usage=number(peak) if peak is not None else None,
    )


def disks(files: Contents) -> tuple[DiskIo, ...]:
    """Read block devices: lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4`."""
    found = []
    for line in files.get("io.stat", b"").splitlines():
        first, *words = line.split() or (b"",)
        place = device(first)
        if place is None:
            continue
        values = {name: number(value) for name, _, value in (word.partition(b"=") for word in words)}
        found.append(
            DiskIo(
                major=place[0],
                minor=place[1],
                read_bytes=values.get(b"rbytes", 0),
                write_bytes=values.get(b"wbytes", 0),
                reads=values.get(b"rios", 0),
                writes=values.get(b"wios", 0),
            )
        )
    return tuple(found)


def processes(files: Contents, process_count: int) -> Processes:
    """Read processes; `pids.current` counts threads."""
    content = files.get("pids.current")
    threads = number(content) if content is not None else None
    return Processes(process_count, threads, limit(files.get("pids.max", b"")))
