"""What only metrics tell of a cgroup: throttling, limits, page cache, disks. Pure.

Source: as of `cgroupstats`; runc for the conversion of a v2 weight to shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.kubelet.cri.cgroupstats import Contents, bounded, number, pairs

FILES: Mapping[str, tuple[str, ...]] = {
    "": (
        *("cpu.stat", "cpu.weight", "cpu.max", "memory.stat", "memory.peak", "memory.events", "memory.low"),
        *("pids.current", "pids.max", "io.stat"),
    ),
    "cpuacct": ("cpuacct.stat",),
    "cpu": ("cpu.stat", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "memory": (
        *("memory.stat", "memory.max_usage_in_bytes", "memory.failcnt", "memory.oom_control"),
        *("memory.kmem.usage_in_bytes", "memory.soft_limit_in_bytes"),
    ),
    "pids": ("pids.current", "pids.max"),
    "blkio": ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"),
}
_TICK_NS = 10_000_000
_OPERATIONS = {
    b"rbytes": ("Read", True),
    b"wbytes": ("Write", True),
    b"rios": ("Read", False),
    b"wios": ("Write", False),
}


@dataclass(frozen=True, slots=True)
class Transfers:
    """Bytes or counts that went to or from one block device; `operation` is Read or Write."""

    device: str
    operation: str
    in_bytes: bool
    value: int


@dataclass(frozen=True, slots=True)
class Detail:
    """Times in nanoseconds, sizes in bytes; a limit of 0 is none."""

    user_ns: int = 0
    system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_shares: int = 0
    cache_bytes: int = 0
    mapped_file_bytes: int = 0
    kernel_bytes: int = 0
    most_bytes: int = 0
    reservation_bytes: int = 0
    failures: int = 0
    oom_kills: int = 0
    threads: int = 0
    threads_most: int = 0
    transfers: tuple[Transfers, ...] = ()


def detail(files: Mapping[str, Contents]) -> Detail:
    """Read the files that were found, by controller; what is not there is 0."""
    if "cpuacct" in files:
        return _version_1(files)
    return _version_2(files.get("", {}))


def _version_1(files: Mapping[str, Contents]) -> Detail:
    cpu, memory, pids = files.get("cpu", {}), files.get("memory", {}), files.get("pids", {})
    split, throttling = pairs(files["cpuacct"].get("cpuacct.stat", b"")), pairs(cpu.get("cpu.stat", b""))
    stat = pairs(memory.get("memory.stat", b""))
    return Detail(
        user_ns=split.get("user", 0) * _TICK_NS,
        system_ns=split.get("system", 0) * _TICK_NS,
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_ns=throttling.get("throttled_time", 0),
        cpu_period_us=number(cpu.get("cpu.cfs_period_us", b"")),
        cpu_quota_us=number(cpu.get("cpu.cfs_quota_us", b"")),
        cpu_shares=number(cpu.get("cpu.shares", b"")),
        cache_bytes=stat.get("total_cache", 0),
        mapped_file_bytes=stat.get("total_mapped_file", 0),
        kernel_bytes=number(memory.get("memory.kmem.usage_in_bytes", b"")),
        most_bytes=number(memory.get("memory.max_usage_in_bytes", b"")),
        reservation_bytes=bounded(number(memory.get("memory.soft_limit_in_bytes", b""))),
        failures=number(memory.get("memory.failcnt", b"")),
        oom_kills=pairs(memory.get("memory.oom_control", b"")).get("oom_kill", 0),
        threads=number(pids.get("pids.current", b"")),
        threads_most=number(pids.get("pids.max", b"")),
        transfers=tuple(_transfers_1(files.get("blkio", {}))),
    )


def _version_2(files: Contents) -> Detail:
    cpu, stat = pairs(files.get("cpu.stat", b"")), pairs(files.get("memory.stat", b""))
    events = pairs(files.get("memory.events", b""))
    quota, _, period = files.get("cpu.max", b"").strip().partition(b" ")
    weight = number(files.get("cpu.weight", b""))
    return Detail(
        user_ns=cpu.get("user_usec", 0) * 1000,
        system_ns=cpu.get("system_usec", 0) * 1000,
        periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        cpu_period_us=number(period),
        cpu_quota_us=number(quota),
        cpu_shares=2 + (weight - 1) * 262142 // 9999 if weight else 0,
        cache_bytes=stat.get("file", 0),
        mapped_file_bytes=stat.get("file_mapped", 0),
        kernel_bytes=stat.get("kernel", stat.get("kernel_stack", 0) + stat.get("slab", 0)),
        most_bytes=number(files.get("memory.peak", b"")),
        reservation_bytes=number(files.get("memory.low", b"")),
        failures=events.get("max", 0),
        oom_kills=events.get("oom_kill", 0),
        threads=number(files.get("pids.current", b"")),
        threads_most=number(files.get("pids.max", b"")),
        transfers=tuple(_transfers_2(files.get("io.stat", b""))),
    )


def _transfers_1(files: Contents) -> Iterator[Transfers]:
    """Read lines such as `8:0 Read 4096`."""
    for name, in_bytes in (("io_service_bytes", True), ("io_serviced", False)):
        for line in files.get(f"blkio.throttle.{name}", b"").splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in (b"Read", b"Write"):
                device, operation = words[0].decode(errors="replace"), words[1].decode()
                yield Transfers(device, operation, in_bytes, number(words[2]))


def _transfers_2(content: bytes) -> Iterator[Transfers]:
    """Read lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4`."""
    for line in content.splitlines():
        device, *words = line.split() or [b""]
        for word in words:
            name, _, value = word.partition(b"=")
            if name in _OPERATIONS:
                yield Transfers(device.decode(errors="replace"), *_OPERATIONS[name], number(value))
