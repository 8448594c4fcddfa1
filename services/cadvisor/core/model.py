"""cAdvisor's values: what a container used at one moment. Counters are since the container's start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum


class CgroupLayout(Enum):
    """How cgroups are mounted."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time in nanoseconds, throttling, and limits. A quota of 0 means none."""

    usage_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    shares: int = 0
    quota_us: int = 0
    period_us: int = 0
    nanocores: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes. A limit of 0 means none; None where the kernel does not tell."""

    usage: int = 0
    working_set: int = 0
    rss: int = 0
    cache: int = 0
    mapped_file: int = 0
    swap: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    limit: int = 0
    failures: int = 0
    oom_kills: int | None = None
    max_usage: int | None = None


# Where no controller tells anything. Compared with `is`: one that was read may hold zeros, too.
NO_CPU = Cpu()
NO_MEMORY = Memory()


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface: bytes, packets, errors, dropped, in both directions."""

    name: str
    received_bytes: int
    received_packets: int
    receive_errors: int
    receive_dropped: int
    sent_bytes: int
    sent_packets: int
    send_errors: int
    send_dropped: int


@dataclass(frozen=True, slots=True)
class DiskIo:
    """One block device."""

    major: int
    minor: int
    device: str = ""
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class Processes:
    """Processes and threads; a limit of 0 means none."""

    processes: int = 0
    threads: int | None = None
    thread_limit: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a container is; names are empty when they are not known."""

    path: str
    id: str = ""
    container: str = ""
    pod: str = ""
    namespace: str = ""
    pod_uid: str = ""
    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 0
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """One container at one moment."""

    identity: Identity
    cpu: Cpu
    memory: Memory
    interfaces: tuple[Interface, ...] = ()
    disks: tuple[DiskIo, ...] = ()
    processes: Processes = Processes()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every container at one moment."""

    time: datetime
    machine: Stats
    containers: tuple[Stats, ...]
    metadata_error: str = ""
    duration_ns: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine is. Memory in bytes."""

    cpu_count: int
    memory_bytes: int
    swap_bytes: int
    kernel_version: str
    os_image: str
    machine_id: str
    boot_id: str
    boot_time: datetime | None
    layout: CgroupLayout
