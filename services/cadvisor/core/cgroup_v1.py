"""Values from the files of cgroup v1. Pure: contents by file name.

Source: Linux Documentation/admin-guide/cgroup-v1; cAdvisor for the working set:
usage less the inactive page cache, at least 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.cadvisor.core.flatfile import device, limit, number, pairs, scaled
from services.cadvisor.core.model import Cpu, DiskIo, Memory, Processes

# Files by controller.
FILES = {
    "cpuacct": ("cpuacct.usage", "cpuacct.stat"),
    "cpu": ("cpu.stat", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "memory": (
        "memory.usage_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.failcnt",
        "memory.stat",
        "memory.oom_control",
    ),
    "blkio": ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"),
    "pids": ("pids.current", "pids.max"),
}
Contents = Mapping[str, bytes]


def cpu(files: Contents, tick_ns: int) -> Cpu:
    """Read CPU time; `tick_ns` is the length of a clock tick."""
    split, throttling = pairs(files.get("cpuacct.stat", b"")), pairs(files.get("cpu.stat", b""))
    return Cpu(
        usage_ns=number(files.get("cpuacct.usage", b"")),
        user_ns=scaled(split.get("user", 0), tick_ns),
        system_ns=scaled(split.get("system", 0), tick_ns),
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_ns=throttling.get("throttled_time", 0),
        shares=number(files.get("cpu.shares", b"")),
        quota_us=number(files.get("cpu.cfs_quota_us", b"")),
        period_us=number(files.get("cpu.cfs_period_us", b"")),
    )


def memory(files: Contents) -> Memory:
    """Read memory."""
    usage, stat = number(files.get("memory.usage_in_bytes", b"")), pairs(files.get("memory.stat", b""))
    kills = pairs(files.get("memory.oom_control", b"")).get("oom_kill")
    return Memory(
        usage=usage,
        working_set=max(0, usage - stat.get("total_inactive_file", 0)),
        rss=stat.get("total_rss", 0),
        cache=stat.get("total_cache", 0),
        mapped_file=stat.get("total_mapped_file", 0),
        swap=stat.get("total_swap", 0),
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        limit=limit(files.get("memory.limit_in_bytes", b"")),
        failures=number(files.get("memory.failcnt", b"")),
        oom_kills=kills,
        max_usage=number(files.get("memory.max_usage_in_bytes", b"")),
    )


def disks(files: Contents) -> tuple[DiskIo, ...]:
    """Read block devices: lines such as `8:0 Read 4096`."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for name, kind in (("blkio.throttle.io_service_bytes", "bytes"), ("blkio.throttle.io_serviced", "count")):
        for line in files.get(name, b"").splitlines():
            words = line.split()
            place = device(words[0]) if len(words) == 3 and words[1] in (b"Read", b"Write") else None
            if place is not None:
                key = f"{words[1].decode().lower()}_{kind}"
                found.setdefault(place, {})[key] = number(words[2])
    return tuple(
        DiskIo(
            major=major,
            minor=minor,
            read_bytes=values.get("read_bytes", 0),
            write_bytes=values.get("write_bytes", 0),
            reads=values.get("read_count", 0),
            writes=values.get("write_count", 0),
        )
        for (major, minor), values in sorted(found.items())
    )


def processes(files: Contents, process_count: int) -> Processes:
    """Read processes; `pids.current` counts threads."""
    content = files.get("pids.current")
    threads = number(content) if content is not None else None
    return Processes(process_count, threads, limit(files.get("pids.max", b"")))
