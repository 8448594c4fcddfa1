"""What a container uses, from the contents of its cgroup's files or from the engine's one-shot stats. Pure.

Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1, Documentation/accounting/psi.rst;
cAdvisor for the working set: usage less the inactive page cache, at least 0. `cgroupdetail` has the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

# By controller, as /proc/PID/cgroup names it; the empty name is cgroup v2.
FILES: Mapping[str, tuple[str, ...]] = {
    "": (
        "cpu.stat",
        "cpu.pressure",
        "memory.current",
        "memory.max",
        "memory.stat",
        "memory.swap.current",
        "memory.swap.max",
        "memory.pressure",
        "io.pressure",
        "cgroup.procs",
    ),
    "cpuacct": ("cpuacct.usage",),
    "memory": (
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.stat",
        "cgroup.procs",
    ),
}
# cgroup v1 writes "no limit" as the largest multiple of a page below 2^63.
_UNLIMITED = 1 << 62
Contents = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of a pressure file: microseconds in all, and percent of the last 10, 60, 300 seconds."""

    total_us: int = 0
    average_10: float = 0.0
    average_60: float = 0.0
    average_300: float = 0.0


@dataclass(frozen=True, slots=True)
class Stall:
    """How long some, and all, waited for a resource."""

    some: Pressure = Pressure()
    full: Pressure = Pressure()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one cgroup uses; bytes and nanoseconds. A limit of 0 is none, None is not known."""

    cpu_ns: int = 0
    memory_bytes: int = 0
    working_set_bytes: int = 0
    rss_bytes: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    memory_limit_bytes: int = 0
    swap_bytes: int | None = None
    swap_limit_bytes: int = 0
    process_count: int = 0
    stalls: Mapping[str, Stall] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interface:
    """What went through one network interface."""

    name: str
    received_bytes: int = 0
    received_packets: int = 0
    receive_errors: int = 0
    receive_dropped: int = 0
    sent_bytes: int = 0
    sent_packets: int = 0
    send_errors: int = 0
    send_dropped: int = 0


def places(content: str) -> dict[str, str]:
    """Read /proc/PID/cgroup: path by controller, those that are outside of our view left out."""
    found: dict[str, str] = {}
    for line in content.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/") and ".." not in path.split("/"):
            found.update(dict.fromkeys(controllers.split(","), path))
    return found


def usage(files: Mapping[str, Contents]) -> Usage | None:
    """Read the files that were found, by controller; None when they tell nothing of CPU and memory."""
    if "cpuacct.usage" in files.get("cpuacct", {}):
        return _version_1(files["cpuacct"], files.get("memory", {}))
    unified = files.get("", {})
    return _version_2(unified) if "cpu.stat" in unified else None


def _version_1(cpu: Contents, memory: Contents) -> Usage:
    stat = pairs(memory.get("memory.stat", b""))
    used, limit = (number(memory.get(f"memory.{n}_in_bytes", b"")) for n in ("usage", "limit"))
    both = bounded(number(memory.get("memory.memsw.limit_in_bytes", b"")))
    return Usage(
        cpu_ns=number(cpu["cpuacct.usage"]),
        memory_bytes=used,
        working_set_bytes=max(0, used - stat.get("total_inactive_file", 0)),
        rss_bytes=stat.get("total_rss", 0),
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        memory_limit_bytes=bounded(limit),
        swap_bytes=stat.get("total_swap"),
        swap_limit_bytes=max(0, both - bounded(limit)),
        process_count=memory.get("cgroup.procs", b"").count(b"\n"),
    )


def _version_2(files: Contents) -> Usage:
    stat = pairs(files.get("memory.stat", b""))
    used = number(files.get("memory.current", b""))
    stalls = {name: _stall(files[f"{name}.pressure"]) for name in _STALLED if f"{name}.pressure" in files}
    swap = files.get("memory.swap.current")
    return Usage(
        cpu_ns=pairs(files["cpu.stat"]).get("usage_usec", 0) * 1000,
        memory_bytes=used,
        working_set_bytes=max(0, used - stat.get("inactive_file", 0)),
        rss_bytes=stat.get("anon", 0),
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        memory_limit_bytes=number(files.get("memory.max", b"")),
        swap_bytes=None if swap is None else number(swap),
        swap_limit_bytes=number(files.get("memory.swap.max", b"")),
        process_count=files.get("cgroup.procs", b"").count(b"\n"),
        stalls=stalls,
    )


_STALLED = ("cpu", "memory", "io")


def from_engine(stats: Mapping[str, Any]) -> Usage | None:
    """Read the engine's stats; None for a container that does not run. Threads count as processes."""
    cpu = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
    memory = stats.get("memory_stats") or {}
    if not memory.get("usage"):
        return None
    detail = memory.get("stats") or {}
    used = int(memory["usage"])
    inactive = int(detail.get("total_inactive_file", detail.get("inactive_file", 0)))
    return Usage(
        cpu_ns=int(cpu.get("total_usage", 0)),
        memory_bytes=used,
        working_set_bytes=max(0, used - inactive),
        rss_bytes=int(detail.get("total_rss", detail.get("anon", 0))),
        page_faults=int(detail.get("total_pgfault", detail.get("pgfault", 0))),
        major_page_faults=int(detail.get("total_pgmajfault", detail.get("pgmajfault", 0))),
        # The engine tells the host's memory where there is no limit; it is the limit then.
        memory_limit_bytes=bounded(int(memory.get("limit", 0))),
        process_count=int((stats.get("pids_stats") or {}).get("current") or 0),
    )


def total(usages: Iterable[Usage]) -> Usage:
    """Add up what the parts of a pod use; a sum has neither limits nor pressures."""
    return reduce(_plus, usages, Usage())


def _plus(one: Usage, other: Usage) -> Usage:
    return Usage(
        cpu_ns=one.cpu_ns + other.cpu_ns,
        memory_bytes=one.memory_bytes + other.memory_bytes,
        working_set_bytes=one.working_set_bytes + other.working_set_bytes,
        rss_bytes=one.rss_bytes + other.rss_bytes,
        page_faults=one.page_faults + other.page_faults,
        major_page_faults=one.major_page_faults + other.major_page_faults,
        process_count=one.process_count + other.process_count,
    )


def interfaces(content: bytes) -> tuple[Interface, ...]:
    """Read /proc/PID/net/dev, loopback left out."""
    found = []
    for line in content.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        words = rest.split()
        if len(words) < 16 or name.strip() == b"lo":
            continue
        values = [number(words[place]) for place in (0, 1, 2, 3, 8, 9, 10, 11)]
        found.append(Interface(name.strip().decode(errors="replace"), *values))
    return tuple(found)


class Rates:
    """Turns CPU time into cores: between two looks that are a second apart, or the last rate before that."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int, int | None]] = {}

    def nanocores(self, key: str, seconds: float, cpu_ns: int) -> int | None:
        """Return the rate at a moment (monotonic seconds); None when there is no earlier look."""
        then, before, rate = self._seen.get(key, (seconds, cpu_ns, None))
        if cpu_ns < before:  # Another cgroup under the same name.
            then, before, rate = seconds, cpu_ns, None
        if seconds - then >= 1.0:
            rate = round((cpu_ns - before) / (seconds - then))
            then, before = seconds, cpu_ns
        self._seen[key] = (then, before, rate)
        return rate

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all but these."""
        kept = set(keys)
        self._seen = {key: value for key, value in self._seen.items() if key in kept}


def _stall(content: bytes) -> Stall:
    lines = {line.partition(b" ")[0]: line.partition(b" ")[2] for line in content.splitlines()}
    return Stall(some=_pressure(lines.get(b"some", b"")), full=_pressure(lines.get(b"full", b"")))


def _pressure(words: bytes) -> Pressure:
    values = {name: value for name, _, value in (word.partition(b"=") for word in words.split())}
    try:
        averages = [float(values.get(name, 0)) for name in (b"avg10", b"avg60", b"avg300")]
    except ValueError:
        return Pressure()
    return Pressure(number(values.get(b"total", b"")), *averages)


def number(content: bytes) -> int:
    """Read a number; `max`, nonsense, and what fits no 63 bits give 0."""
    try:
        value = int(content)
    except ValueError:
        return 0
    return value if 0 <= value < 1 << 63 else 0


def bounded(limit: int) -> int:
    """Read a limit of cgroup v1; none gives 0."""
    return 0 if limit >= _UNLIMITED else limit


def pairs(content: bytes) -> dict[str, int]:
    """Read lines such as `anon 4096`."""
    words = (line.split(b" ") for line in content.splitlines())
    return {pair[0].decode(errors="replace"): number(pair[1]) for pair in words if len(pair) == 2}
