"""Counters and histograms as Prometheus text."""

from __future__ import annotations

from datetime import UTC, datetime

from services.kubelet.core import resource_metrics
from services.kubelet.core.measures import Counter, Gauge, Histogram, page
from services.kubelet.core.status import ContainerState, ContainerStatus, PodPhase, PodStatus, StatePhase
from services.kubelet.core.summary import (
    ContainerUsage,
    FilesystemUsage,
    InterfaceUsage,
    NetworkUsage,
    NodeUsage,
    Stats,
    Usage,
    summarize,
    to_json,
)
from tests.builders import a_pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_was_not_measured_is_not_on_the_page() -> None:
    """Not even its name."""
    assert page([Counter("a_total", "A."), Histogram("b_seconds", "B.")]) == b""


def test_labels_are_escaped() -> None:
    """Names of pods are plain, but not all labels are."""
    counter = Counter("a_total", "A.", ("x",))
    counter.add('q"\\\n')

    assert page([counter]).decode().splitlines()[2] == 'a_total{x="q\\"\\\\\\n"} 1'


def test_a_histogram_counts_each_bucket_with_those_below() -> None:
    """A value at a bucket's end belongs to it."""
    histogram = Histogram("b_seconds", "B.", ("kind",), (0.5, 1.0))
    for value in (0.1, 0.5, 0.7, 3.0):
        histogram.observe(value, "x")

    assert page([histogram]).decode() == (
        "# HELP b_seconds B.\n# TYPE b_seconds histogram\n"
        'b_seconds_bucket{kind="x",le="0.5"} 2\nb_seconds_bucket{kind="x",le="1"} 3\n'
        'b_seconds_bucket{kind="x",le="+Inf"} 4\n'
        'b_seconds_sum{kind="x"} 4.3\nb_seconds_count{kind="x"} 4\n'
    )


def test_what_is_gone_is_forgotten() -> None:
    """Or labels of pods would grow for ever."""
    gauge, histogram = Gauge("g", "G.", ("pod",)), Histogram("h", "H.", ("pod",))
    for pod in ("a", "b"):
        gauge.set(1, pod)
        histogram.observe(1, pod)
    gauge.forget(lambda key: key == ("b",))
    histogram.forget(lambda key: key == ("b",))

    assert b'"a"' not in page([gauge, histogram])
    assert b'"b"' in page([gauge, histogram])


def _usage(cpu: int, memory: int) -> Usage:
    return Usage(
        time=NOW,
        cpu_nanocores=cpu,
        cpu_usage_nanoseconds=cpu * 1000,
        memory_working_set_bytes=memory,
        memory_usage_bytes=memory * 2,
        memory_rss_bytes=memory // 2,
        memory_available_bytes=5,
        page_faults=7,
        process_count=2,
        start_time=NOW,
    )


def _network() -> NetworkUsage:
    interfaces = (InterfaceUsage("lo", 9, 0, 9, 0), InterfaceUsage("eth0", 1, 2, 3, 4))
    return NetworkUsage(NOW, 10, 12, interfaces)


def _status() -> PodStatus:
    container = ContainerStatus("app", "app:1", ContainerState(StatePhase.RUNNING))
    return PodStatus(a_pod().uid, "default", "web", PodPhase.RUNNING, (), (container,), start_time=NOW)


def _stats() -> Stats:
    containers = (
        ContainerUsage("uid-1", "app", _usage(3_000_000, 100)),
        ContainerUsage("uid-1", "POD", _usage(1_000_000, 10), _network()),
    )
    return Stats(_usage(9_000_000, 1000), _network(), containers)


def test_the_resource_page_has_the_stable_names() -> None:
    """With the time of each measurement, which metrics-server divides by."""
    lines = resource_metrics.page(summarize("n1", [_status()], _stats())).decode().splitlines()

    when = int(NOW.timestamp() * 1000)
    of_app = 'container="app",namespace="default",pod="web"'
    of_pod = 'namespace="default",pod="web"'
    for wanted in (
        f"node_cpu_usage_seconds_total 9 {when}",
        f"node_memory_working_set_bytes 1000 {when}",
        f"container_cpu_usage_seconds_total{{{of_app}}} 3 {when}",
        f"container_memory_working_set_bytes{{{of_app}}} 100 {when}",
        f"container_start_time_seconds{{{of_app}}} {int(NOW.timestamp())}",
        f"pod_cpu_usage_seconds_total{{{of_pod}}} 4 {when}",
        f"pod_memory_working_set_bytes{{{of_pod}}} 110 {when}",
        "resource_scrape_error 0",
    ):
        assert wanted in lines


def test_a_page_without_measurements_says_so() -> None:
    """As the original does when a scrape fails."""
    page_text = resource_metrics.page(summarize("n1", [_status()], None, "cAdvisor is away")).decode()

    assert page_text.splitlines()[-1] == "resource_scrape_error 1"


def test_the_summary_has_the_originals_shape() -> None:
    """CPU, memory, network with its interfaces, processes, filesystems, limits."""
    disk = FilesystemUsage(NOW, 1, 10, 9, 5, 8)
    made = to_json(summarize("n1", [_status()], _stats()), NodeUsage(NOW, disk, None, 32768, 99))

    node, pod = made["node"], made["pods"][0]
    assert node["fs"]["usedBytes"] == 9
    assert node["fs"]["inodesUsed"] == 3
    assert (node["rlimit"]["maxpid"], node["rlimit"]["curproc"]) == (32768, 99)
    assert node["memory"]["availableBytes"] == 5
    assert node["memory"]["pageFaults"] == 7
    assert node["network"]["name"] == "eth0"
    assert node["network"]["rxErrors"] == 2
    assert [i["name"] for i in node["network"]["interfaces"]] == ["lo", "eth0"]
    assert pod["cpu"] == {
        "time": "2026-01-01T00:00:00Z",
        "usageCoreNanoSeconds": 4_000_000_000,
        "usageNanoCores": 4_000_000,
    }
    assert pod["process_stats"] == {"process_count": 4}
    assert pod["containers"][0]["startTime"] == "2026-01-01T00:00:00Z"


def test_the_small_summary_has_cpu_and_memory_alone() -> None:
    """`?only_cpu_and_memory=true`."""
    made = to_json(summarize("n1", [_status()], _stats()), None, only_cpu_and_memory=True)

    assert set(made["node"]) == {"nodeName", "cpu", "memory", "startTime"}
    assert set(made["pods"][0]) == {"podRef", "startTime", "containers", "cpu", "memory"}
