"""What is read from cgroup files and from the engine's stats, and what becomes of it in the CRI."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri import cgroupdetail, cgroupstats, metrics, statsmessages
from services.kubelet.cri.cgroupfiles import CgroupFiles
from services.kubelet.cri.cgroupstats import Interface, Pressure, Rates, Stall, Usage
from services.kubelet.cri.metrics import Sample
from services.kubelet.cri.naming import CONTAINER, SANDBOX, Record
from services.kubelet.cri.statsmessages import Look

PRESSURE = (
    b"some avg10=1.50 avg60=0.25 avg300=0.00 total=7000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"
)
V2 = {
    "cpu.stat": b"usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 1\n",
    "cpu.pressure": PRESSURE,
    "cpu.max": b"20000 100000\n",
    "cpu.weight": b"39\n",
    "memory.current": b"8192\n",
    "memory.max": b"max\n",
    "memory.stat": b"anon 4096\nfile 4000\ninactive_file 1000\npgfault 12\npgmajfault 3\nkernel 77\n",
    "memory.swap.current": b"512\n",
    "memory.swap.max": b"1024\n",
    "memory.events": b"low 0\nmax 6\noom_kill 2\n",
    "pids.current": b"5\n",
    "pids.max": b"max\n",
    "io.stat": b"8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\n",
    "cgroup.procs": b"1\n2\n3\n",
}
V1_MEMORY = {
    "memory.usage_in_bytes": b"8192\n",
    "memory.limit_in_bytes": b"9223372036854771712\n",
    "memory.memsw.limit_in_bytes": b"9223372036854771712\n",
    "memory.stat": b"total_rss 4096\ntotal_inactive_file 1000\ntotal_swap 512\ntotal_pgfault 12\n",
    "memory.oom_control": b"oom_kill_disable 0\noom_kill 2\n",
    "cgroup.procs": b"1\n2\n3\n",
}
V1 = {
    "cpuacct": {"cpuacct.usage": b"1500000\n", "cpuacct.stat": b"user 2\nsystem 1\n"},
    "cpu": {"cpu.shares": b"1024\n", "cpu.cfs_period_us": b"100000\n", "cpu.cfs_quota_us": b"-1\n"},
    "memory": V1_MEMORY,
    "pids": {"pids.current": b"5\n", "pids.max": b"max\n"},
    "blkio": {"blkio.throttle.io_service_bytes": b"8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n"},
}


def test_version_2_is_read() -> None:
    """The working set leaves the inactive page cache out; `max` is no limit."""
    found = cgroupstats.usage({"": V2})

    assert found == Usage(
        cpu_ns=1_500_000,
        memory_bytes=8192,
        working_set_bytes=7192,
        rss_bytes=4096,
        page_faults=12,
        major_page_faults=3,
        swap_bytes=512,
        swap_limit_bytes=1024,
        process_count=3,
        stalls={"cpu": Stall(Pressure(7000, 1.5, 0.25, 0.0), Pressure(5, 0.0, 0.0, 0.0))},
    )


def test_version_1_is_read_and_tells_the_same() -> None:
    """It has no pressures, and writes "no limit" as a number."""
    found = cgroupstats.usage(V1)

    assert found is not None
    assert (found.cpu_ns, found.memory_bytes, found.working_set_bytes) == (1_500_000, 8192, 7192)
    assert (found.memory_limit_bytes, found.swap_bytes, found.swap_limit_bytes) == (0, 512, 0)
    assert found.process_count == 3


@pytest.mark.parametrize("files", [V1, {"": V2}], ids=["v1", "v2"])
def test_what_only_metrics_tell_is_read_from_both(files: dict[str, dict[str, bytes]]) -> None:
    """Shares come from a weight as runc makes it; no quota is 0."""
    found = cgroupdetail.detail(files)

    assert (found.threads, found.threads_most, found.oom_kills) == (5, 0, 2)
    assert (found.cpu_period_us, found.cpu_shares) == (100_000, 1024 if files is V1 else 998)
    assert found.transfers[0].device == "8:0"
    assert found.transfers[0].in_bytes


@given(st.dictionaries(st.sampled_from(sorted({*V2, *V1_MEMORY, "cpuacct.usage"})), st.binary(max_size=40)))
def test_garbage_gives_numbers(files: dict[str, bytes]) -> None:
    """A file may be torn, or newer than this code: nothing raises, nothing is negative."""
    for found in (cgroupstats.usage({"": files}), cgroupstats.usage({"cpuacct": files, "memory": files})):
        if found is not None:
            assert min(found.cpu_ns, found.memory_bytes, found.working_set_bytes, found.process_count) >= 0
    cgroupdetail.detail({"": files})
    cgroupdetail.detail({"cpuacct": files, "cpu": files, "blkio": files})
    cgroupstats.interfaces(files.get("cpu.stat", b""))


def test_the_engines_stats_say_the_same_where_files_are_not_seen() -> None:
    """And nothing of a container that does not run."""
    told = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000}},
        "memory_stats": {"usage": 8192, "limit": 65536, "stats": {"inactive_file": 1000, "anon": 4096}},
        "pids_stats": {"current": 3},
    }
    found = cgroupstats.from_engine(told)

    assert found is not None
    assert (found.cpu_ns, found.working_set_bytes, found.memory_limit_bytes) == (1_500_000, 7192, 65536)
    assert cgroupstats.from_engine({"memory_stats": {}, "cpu_stats": {}}) is None


def test_places_outside_of_our_view_are_left_out() -> None:
    """A server in a cgroup namespace of its own sees others' as `/../`."""
    text = "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/../../abc\n"

    assert cgroupstats.places(text) == {
        "name=systemd": "/",
        "memory": "/docker/abc",
        "cpu": "/docker/abc",
        "cpuacct": "/docker/abc",
    }


def test_a_rate_needs_a_second_and_survives_a_new_cgroup() -> None:
    """Between two quick looks the last rate stands."""
    rates = Rates()

    assert rates.nanocores("a", 10.0, 1000) is None
    assert rates.nanocores("a", 10.5, 9000) is None
    assert rates.nanocores("a", 12.0, 2_000_001_000) == 1_000_000_000
    assert rates.nanocores("a", 12.1, 2_000_002_000) == 1_000_000_000
    assert rates.nanocores("a", 14.0, 5) is None
    rates.keep([])
    assert rates.nanocores("a", 16.0, 10**9) is None


def test_a_process_id_that_is_used_again_is_nobodys(tmp_path: Path) -> None:
    """Files and interfaces are a container's only while its id is in the process's cgroup."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7/net").mkdir(parents=True)
    (proc / "7/net/dev").write_bytes(b"a\nb\n lo: " + b"1 " * 16 + b"\n eth0: " + b"9 " * 16 + b"\n")
    (root / "docker/abc").mkdir(parents=True)
    (root / "docker/abc/cpu.stat").write_bytes(b"usage_usec 5\n")
    files = CgroupFiles(proc, root)
    (proc / "7/cgroup").write_text("0::/docker/abc\n")

    mine = files.places("abc", 7)
    assert files.usage(mine) == Usage(cpu_ns=5000)
    assert [i.name for i in files.network("abc", 7)] == ["eth0"]
    (proc / "7/cgroup").write_text("0::/docker/other\n")
    assert files.places("abc", 7) == {}
    assert files.network("abc", 7) == ()
    assert files.usage({}) is None


def test_open_files_and_sockets_of_a_cgroup_are_counted(tmp_path: Path) -> None:
    """Of all its processes; one that has gone counts nothing."""
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/cgroup.procs").write_text("7\n8\n")
    (tmp_path / "7/fd").mkdir(parents=True)
    (tmp_path / "7/fd/0").symlink_to("/dev/null")
    (tmp_path / "7/fd/1").symlink_to("socket:[1]")

    assert CgroupFiles(tmp_path).descriptors({"": str(tmp_path / "cgroup")}) == (2, 1)


OWNED = ({"Id": "abc", "State": "running"}, Record(CONTAINER, "app", labels={"a": "b"}))
BOX = ({"Id": "box", "State": "running"}, Record(SANDBOX, "web", "default", "uid-1"))


def test_statistics_have_every_field_that_is_known() -> None:
    """What is not known is absent, not zero: a limit, a rate, a pressure."""
    usage = cgroupstats.usage({"": V2})
    made = statsmessages.container(
        OWNED, Look(5, usage, nanocores=9, layer_bytes=11, layer_timestamp=4, root="/r")
    )
    bare = statsmessages.container(OWNED, Look(5))

    assert (made.attributes.id, made.attributes.metadata.name, made.cpu.timestamp) == ("abc", "app", 5)
    assert (made.cpu.usage_core_nano_seconds.value, made.cpu.usage_nano_cores.value) == (1_500_000, 9)
    assert made.cpu.psi.Some.Total == 7_000_000
    assert not made.memory.HasField("available_bytes")
    assert (made.swap.swap_usage_bytes.value, made.swap.swap_available_bytes.value) == (512, 512)
    assert (made.writable_layer.used_bytes.value, made.writable_layer.fs_id.mountpoint) == (11, "/r")
    assert not bare.HasField("cpu")
    assert not bare.HasField("writable_layer")


def test_a_pod_has_its_network_and_its_containers() -> None:
    """`eth0` is the default interface; the others stand beside it."""
    made = statsmessages.sandbox(
        BOX, Look(5, Usage(process_count=4)), [Interface("dummy"), Interface("eth0", 7)], [(OWNED, Look(5))]
    )

    assert made.attributes.metadata.uid == "uid-1"
    assert made.linux.process.process_count.value == 4
    assert (made.linux.network.default_interface.name, made.linux.network.timestamp) == ("eth0", 5)
    assert made.linux.network.default_interface.rx_bytes.value == 7
    assert [i.name for i in made.linux.network.interfaces] == ["dummy"]
    assert [c.attributes.id for c in made.linux.containers] == ["abc"]


def test_metrics_fit_their_descriptors() -> None:
    """Each value of each label has its key, and each family that is always known has a value."""
    keys = {d.name: list(d.label_keys) for d in metrics.descriptors()}
    usage = cgroupstats.usage({"": V2})
    assert usage is not None
    sample = Sample(10**9, usage, cgroupdetail.detail({"": V2}))
    labels = ["x"] * len(metrics.LABELS)
    found = [*metrics.of_sample(sample, labels), *metrics.of_network([Interface("eth0", 7)], labels, 1)]

    assert all(len(metric.label_values) == len(keys[metric.name]) for metric in found)
    absent = set(keys) - {metric.name for metric in found}
    assert absent == {
        f"container_pressure_{resource}_{word}_seconds_total"
        for resource in ("memory", "io")
        for word in ("waiting", "stalled")
    }
    assert all(d.help for d in metrics.descriptors())
    values = {m.name: m.value.value for m in found if m.metric_type == pb.GAUGE}
    assert values["container_memory_working_set_bytes"] == 7192


def test_a_metric_never_comes_twice_with_the_same_labels() -> None:
    """Prometheus refuses such a page."""
    sample = Sample(1, Usage(), cgroupdetail.detail(V1))
    found = [(m.name, *m.label_values) for m in metrics.of_sample(sample, ["x"] * 6)]

    assert len(found) == len(set(found))
