"""What cAdvisor makes of the kernel's files."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from services.cadvisor.core import cgroup_v1, cgroup_v2, procfs
from services.cadvisor.core.exposition import render
from services.cadvisor.core.flatfile import limit, pairs
from services.cadvisor.core.identify import container_id
from services.cadvisor.core.model import (
    CgroupLayout,
    Cpu,
    DiskIo,
    Identity,
    Interface,
    Memory,
    Snapshot,
    Stats,
)
from services.cadvisor.core.rates import with_rate
from services.cadvisor.loops.sampling import uses_host_network

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = "ab" * 32


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"/docker/{ID}", ID),
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/kubepods/burstable/podx/{ID}", ID),
        (f"/kubepods.slice/cri-containerd-{ID}.scope", ID),
        ("/docker", ""),
        (f"/docker/{ID[:-1]}", ""),
        ("/user.slice/user-0.slice", ""),
    ],
)
def test_containers_are_told_from_other_cgroups(path: str, found: str) -> None:
    """By both drivers' names."""
    assert container_id(path) == found


def test_cgroup_v1_is_read() -> None:
    """Ticks become nanoseconds; the working set leaves the inactive cache out."""
    files = {
        "cpuacct.usage": b"5000\n",
        "cpuacct.stat": b"user 3\nsystem 1\n",
        "cpu.stat": b"nr_periods 7\nnr_throttled 2\nthrottled_time 99\n",
        "cpu.shares": b"102\n",
        "cpu.cfs_quota_us": b"-1\n",
        "memory.usage_in_bytes": b"1000\n",
        "memory.limit_in_bytes": b"9223372036854771712\n",
        "memory.stat": b"cache 1\ntotal_inactive_file 300\ntotal_rss 500\ntotal_pgmajfault 4\n",
        "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "blkio.throttle.io_service_bytes": b"8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
        "blkio.throttle.io_serviced": b"8:0 Read 1\n8:0 Write 2\n",
        "pids.current": b"4\n",
        "pids.max": b"max\n",
    }

    cpu, memory = cgroup_v1.cpu(files, 10_000_000), cgroup_v1.memory(files)

    assert (cpu.usage_ns, cpu.user_ns, cpu.system_ns, cpu.quota_us) == (5000, 30_000_000, 10_000_000, 0)
    assert (cpu.periods, cpu.throttled_periods, cpu.throttled_ns, cpu.shares) == (7, 2, 99, 102)
    assert (memory.working_set, memory.rss, memory.limit, memory.oom_kills) == (700, 500, 0, 3)
    assert cgroup_v1.disks(files) == (DiskIo(8, 0, "", 10, 20, 1, 2),)
    assert (cgroup_v1.processes(files, 2).threads, cgroup_v1.processes(files, 2).thread_limit) == (4, 0)


def test_cgroup_v2_is_read() -> None:
    """Microseconds become nanoseconds, `max` no limit, the weight shares."""
    files = {
        "cpu.stat": b"usage_usec 5\nuser_usec 3\nsystem_usec 2\n"
        b"nr_periods 1\nnr_throttled 1\nthrottled_usec 4\n",
        "cpu.max": b"50000 100000\n",
        "cpu.weight": b"100\n",
        "memory.current": b"1000\n",
        "memory.max": b"max\n",
        "memory.stat": b"anon 500\nfile 400\ninactive_file 300\n",
        "memory.events": b"max 2\noom_kill 1\n",
        "io.stat": b"8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
        "pids.current": b"4\n",
    }

    cpu, memory = cgroup_v2.cpu(files), cgroup_v2.memory(files)

    assert (cpu.usage_ns, cpu.throttled_ns, cpu.quota_us, cpu.period_us) == (5000, 4000, 50_000, 100_000)
    assert cpu.shares == 2597
    assert (memory.working_set, memory.rss, memory.limit, memory.oom_kills) == (700, 500, 0, 1)
    assert cgroup_v2.disks(files) == (DiskIo(8, 0, "", 10, 20, 1, 2),)


@given(st.dictionaries(st.sampled_from([*cgroup_v2.FILES, "memory.stat"]), st.binary(max_size=60)))
def test_nonsense_in_a_file_is_never_a_fault(files: dict[str, bytes]) -> None:
    """A kernel may say anything; what is not understood is 0."""
    cgroup_v2.cpu(files)
    cgroup_v2.memory(files)
    cgroup_v1.cpu(files, 1)
    cgroup_v1.memory(files)
    pairs(b"".join(files.values()))
    limit(b"".join(files.values()))


def test_interfaces_are_read_without_loopback() -> None:
    """/proc/PID/net/dev has two lines of heading."""
    loopback = b"    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"
    content = b"Inter-| x\n face | y\n" + loopback + b"  eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n"

    assert procfs.interfaces(content) == (Interface("eth0", 10, 2, 3, 4, 20, 5, 6, 7),)


@pytest.mark.parametrize(
    ("mounts", "layout"),
    [
        (b"1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", CgroupLayout.V1),
        (
            b"1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            b"2 0 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            CgroupLayout.HYBRID,
        ),
        (b"1 0 0:1 / /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw\n", CgroupLayout.V2),
    ],
)
def test_the_layout_is_told_from_the_mounts(mounts: bytes, layout: CgroupLayout) -> None:
    """Version 1, version 2, or both side by side."""
    assert procfs.cgroup_mounts(mounts, "/sys/fs/cgroup").layout() is layout


def test_mounts_elsewhere_are_left_alone() -> None:
    """A container's own view is not the host's."""
    mounts = procfs.cgroup_mounts(
        b"1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup c rw,cpu,cpuacct\n", "/host/cgroup"
    )

    assert (mounts.v1, mounts.v2) == ({}, "")


@pytest.mark.parametrize(
    ("before", "seconds", "expected"),
    [(Cpu(usage_ns=1_000_000_000), 2, 500_000_000), (Cpu(usage_ns=3_000_000_000), 2, None), (None, 2, None)],
)
def test_a_rate_needs_two_samples_and_no_reset(
    before: Cpu | None, seconds: int, expected: int | None
) -> None:
    """A counter that went back is a new one."""
    assert with_rate(Cpu(usage_ns=2_000_000_000), before, seconds).nanocores == expected


def test_the_metrics_page_is_read_by_prometheus_and_has_no_series_twice() -> None:
    """Names and labels of cAdvisor; every value escaped."""
    nasty = Stats(
        Identity(f"/docker/{ID}", ID, "app", "web", "default", "uid", 'x"y\\z\n'),
        Cpu(usage_ns=1_500_000_000),
        Memory(working_set=7),
        (Interface("eth0", 1, 2, 3, 4, 5, 6, 7, 8),),
        (DiskIo(8, 0, "sda", 1, 2, 3, 4), DiskIo(8, 16, "sdb")),
    )
    page = render(Snapshot(NOW, Stats(Identity("/"), Cpu(), Memory()), (nasty,)))

    series = [
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]
    keys = [key[:2] for key in series]
    assert len(keys) == len(set(keys))
    cpu = [s for s in series if s[0] == "container_cpu_usage_seconds_total" and ("pod", "web") in s[1]]
    assert cpu[0][2] == 1.5
    assert ("image", 'x"y\\z\n') in cpu[0][1]


def test_a_container_on_the_hosts_network_has_no_interfaces_of_its_own() -> None:
    """The machine's traffic would be counted once for each such container."""
    eth, bridge = (Interface(name, 1, 1, 0, 0, 1, 1, 0, 0) for name in ("eth0", "docker0"))

    assert uses_host_network((bridge, eth), {"eth0", "docker0"})
    assert not uses_host_network((eth,), {"eth0", "docker0"})
    assert not uses_host_network((), set())
