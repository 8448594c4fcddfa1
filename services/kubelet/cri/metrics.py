"""Metrics of pods as `ListPodSandboxMetrics` gives them: cAdvisor's names and labels. Pure.

Source: KEP-2371, critest's list of names, and cAdvisor's `docs/storage/prometheus.md`. The CRI has
whole numbers alone, so seconds are whole seconds. Each metric's label values stand in the order of its
descriptor's keys. Left out: huge pages, and limits of open files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.cgroupdetail import Detail
from services.kubelet.cri.cgroupstats import Interface, Usage

LABELS = ("container", "id", "image", "name", "namespace", "pod")
_NS = 1_000_000_000
# Label values beside those of every metric, and a number.
Series = tuple[tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of the writable layers, and how much of it this one takes; bytes and counts."""

    used_bytes: int = 0
    total_bytes: int = 0
    inodes: int = 0
    free_inodes: int = 0


_NO_DETAIL = Detail()
_NO_DISK = Disk()


@dataclass(frozen=True, slots=True)
class Sample:
    """All that is known of a container or a pod at a moment (nanoseconds since the epoch)."""

    timestamp: int
    usage: Usage
    detail: Detail = _NO_DETAIL
    disk: Disk = _NO_DISK
    started_at: int = 0
    open_files: int = 0
    sockets: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `series` gives its values, none where nothing is known."""

    name: str
    help: str
    kind: pb.MetricType.ValueType
    series: Callable[[Sample], Iterator[Series]]
    more_labels: tuple[str, ...] = ()


def _counter(name: str, words: str, value: Callable[[Sample], int | None]) -> Family:
    return Family(f"container_{name}", words, pb.COUNTER, _single(value))


def _gauge(name: str, words: str, value: Callable[[Sample], int | None]) -> Family:
    return Family(f"container_{name}", words, pb.GAUGE, _single(value))


def _single(value: Callable[[Sample], int | None]) -> Callable[[Sample], Iterator[Series]]:
    def series(sample: Sample) -> Iterator[Series]:
        known = value(sample)
        if known is not None:
            yield (), known

    return series


def _page_faults(sample: Sample) -> Iterator[Series]:
    yield ("pgfault", "container"), sample.usage.page_faults
    yield ("pgmajfault", "container"), sample.usage.major_page_faults


def _device_usage(sample: Sample) -> Iterator[Series]:
    for moved in sample.detail.transfers:
        if moved.in_bytes:
            major, _, minor = moved.device.partition(":")
            yield ("", major, minor, moved.operation), moved.value


def _transfers(name: str, words: str, operation: str, *, in_bytes: bool) -> Family:
    def series(sample: Sample) -> Iterator[Series]:
        for moved in sample.detail.transfers:
            if moved.operation == operation and moved.in_bytes is in_bytes:
                yield (moved.device,), moved.value

    return Family(f"container_fs_{name}_total", words, pb.COUNTER, series, ("device",))


def _stalled(name: str, who: str, resource: str, *, full: bool) -> Family:
    def value(sample: Sample) -> int | None:
        stall = sample.usage.stalls.get(resource)
        pressure = None if stall is None else stall.full if full else stall.some
        return None if pressure is None else pressure.total_us // 1_000_000

    words = f"Total time {who} in the container have been {name} for {resource}."
    return _counter(f"pressure_{resource}_{name}_seconds_total", words, value)


FAMILIES: tuple[Family, ...] = (
    _counter("cpu_usage_seconds_total", "Cumulative cpu time consumed.", lambda s: s.usage.cpu_ns // _NS),
    _counter("cpu_user_seconds_total", "Cumulative user cpu time.", lambda s: s.detail.user_ns // _NS),
    _counter("cpu_system_seconds_total", "Cumulative system cpu time.", lambda s: s.detail.system_ns // _NS),
    _counter("cpu_cfs_periods_total", "Number of elapsed enforcement periods.", lambda s: s.detail.periods),
    _counter(
        "cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        lambda s: s.detail.throttled_periods,
    ),
    _counter(
        "cpu_cfs_throttled_seconds_total",
        "Total time the container has been throttled.",
        lambda s: s.detail.throttled_ns // _NS,
    ),
    _gauge("spec_cpu_period", "CPU period in microseconds.", lambda s: s.detail.cpu_period_us),
    _gauge("spec_cpu_quota", "CPU quota in microseconds.", lambda s: s.detail.cpu_quota_us or None),
    _gauge("spec_cpu_shares", "CPU shares.", lambda s: s.detail.cpu_shares),
    _gauge("memory_usage_bytes", "Current memory usage, all memory.", lambda s: s.usage.memory_bytes),
    _gauge("memory_working_set_bytes", "Current working set.", lambda s: s.usage.working_set_bytes),
    _gauge("memory_rss", "Size of anonymous memory in bytes.", lambda s: s.usage.rss_bytes),
    _gauge("memory_cache", "Bytes of page cache memory.", lambda s: s.detail.cache_bytes),
    _gauge(
        "memory_mapped_file", "Size of memory mapped files in bytes.", lambda s: s.detail.mapped_file_bytes
    ),
    _gauge("memory_kernel_usage", "Size of kernel memory in bytes.", lambda s: s.detail.kernel_bytes),
    _gauge("memory_swap", "Swap usage in bytes.", lambda s: s.usage.swap_bytes or 0),
    _gauge("memory_max_usage_bytes", "Largest memory usage recorded.", lambda s: s.detail.most_bytes),
    _counter("memory_failcnt", "Number of memory usage hits limits.", lambda s: s.detail.failures),
    Family(
        "container_memory_failures_total",
        "Cumulative count of memory allocation failures.",
        pb.COUNTER,
        _page_faults,
        ("failure_type", "scope"),
    ),
    _counter("oom_events_total", "Count of out of memory events.", lambda s: s.detail.oom_kills),
    _gauge("spec_memory_limit_bytes", "Memory limit; 0 is none.", lambda s: s.usage.memory_limit_bytes),
    _gauge(
        "spec_memory_reservation_limit_bytes",
        "Memory reservation; 0 is none.",
        lambda s: s.detail.reservation_bytes,
    ),
    _gauge("spec_memory_swap_limit_bytes", "Swap limit; 0 is none.", lambda s: s.usage.swap_limit_bytes),
    _gauge("processes", "Number of processes in the container.", lambda s: s.usage.process_count),
    _gauge("threads", "Number of threads in the container.", lambda s: s.detail.threads),
    _gauge("threads_max", "Most threads allowed; 0 is no limit.", lambda s: s.detail.threads_most),
    _gauge("file_descriptors", "Number of open file descriptors.", lambda s: s.open_files),
    _gauge("sockets", "Number of open sockets.", lambda s: s.sockets),
    _gauge("fs_usage_bytes", "Bytes of the writable layer.", lambda s: s.disk.used_bytes),
    _gauge("fs_limit_bytes", "Bytes of the layer's file system.", lambda s: s.disk.total_bytes),
    _gauge("fs_inodes_total", "Inodes of the layer's file system.", lambda s: s.disk.inodes),
    _gauge("fs_inodes_free", "Free inodes of the layer's file system.", lambda s: s.disk.free_inodes),
    _transfers("reads_bytes", "Cumulative count of bytes read.", "Read", in_bytes=True),
    _transfers("writes_bytes", "Cumulative count of bytes written.", "Write", in_bytes=True),
    _transfers("reads", "Cumulative count of reads completed.", "Read", in_bytes=False),
    _transfers("writes", "Cumulative count of writes completed.", "Write", in_bytes=False),
    Family(
        "container_blkio_device_usage_total",
        "Blkio device bytes usage.",
        pb.COUNTER,
        _device_usage,
        ("device", "major", "minor", "operation"),
    ),
    _gauge("last_seen", "Last time the container was seen.", lambda s: s.timestamp // _NS),
    _gauge("start_time_seconds", "Start time since the epoch.", lambda s: s.started_at // _NS),
    *(
        _stalled(name, who, resource, full=full)
        for resource in ("cpu", "memory", "io")
        for name, who, full in (("waiting", "some tasks", False), ("stalled", "all tasks", True))
    ),
)
_NETWORK: tuple[tuple[str, str, Callable[[Interface], int]], ...] = (
    ("receive_bytes", "bytes received", lambda i: i.received_bytes),
    ("receive_packets", "packets received", lambda i: i.received_packets),
    ("receive_packets_dropped", "packets dropped while receiving", lambda i: i.receive_dropped),
    ("receive_errors", "errors encountered while receiving", lambda i: i.receive_errors),
    ("transmit_bytes", "bytes transmitted", lambda i: i.sent_bytes),
    ("transmit_packets", "packets transmitted", lambda i: i.sent_packets),
    ("transmit_packets_dropped", "packets dropped while transmitting", lambda i: i.send_dropped),
    ("transmit_errors", "errors encountered while transmitting", lambda i: i.send_errors),
)


def descriptors() -> list[pb.MetricDescriptor]:
    """Return every metric that may come."""
    made = [
        pb.MetricDescriptor(name=f.name, help=f.help, label_keys=(*LABELS, *f.more_labels)) for f in FAMILIES
    ]
    keys = (*LABELS, "interface")
    for name, what, _ in _NETWORK:
        words = f"Cumulative count of {what}."
        made.append(pb.MetricDescriptor(name=f"container_network_{name}_total", help=words, label_keys=keys))
    return made


def of_sample(sample: Sample, labels: Sequence[str]) -> Iterator[pb.Metric]:
    """Give the metrics of a container, or of a pod."""
    for family in FAMILIES:
        for more, value in family.series(sample):
            yield _metric(family.name, family.kind, (*labels, *more), value, sample.timestamp)


def of_network(interfaces: Sequence[Interface], labels: Sequence[str], timestamp: int) -> Iterator[pb.Metric]:
    """Give the metrics of a pod's interfaces."""
    for name, _, value in _NETWORK:
        for interface in interfaces:
            values = (*labels, interface.name)
            yield _metric(f"container_network_{name}_total", pb.COUNTER, values, value(interface), timestamp)


def _metric(
    name: str, kind: pb.MetricType.ValueType, labels: Sequence[str], value: int, timestamp: int
) -> pb.Metric:
    return pb.Metric(
        name=name,
        timestamp=timestamp,
        metric_type=kind,
        label_values=labels,
        value=pb.UInt64Value(value=value),
    )
