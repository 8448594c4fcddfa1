"""Container metrics as Prometheus text, under cAdvisor's names and labels. Pure.

Source: cAdvisor, docs/storage/prometheus.md; the Prometheus text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from services.cadvisor.core.model import NO_CPU, NO_MEMORY, Cpu, Memory, Snapshot, Stats

Value = int | float
Series = tuple[str, Value]
_NS = 1e-9


def _plain(read: Callable[[Stats], Value | None]) -> Callable[[Stats], Iterator[Series]]:
    def series(stats: Stats) -> Iterator[Series]:
        value = read(stats)
        if value is not None:
            yield "", value

    return series


def _cpu(read: Callable[[Cpu], Value | None], more: str = "") -> Callable[[Stats], Iterator[Series]]:
    """Leave the series out where the controller is off: a counter that says 0 would have fallen."""

    def series(stats: Stats) -> Iterator[Series]:
        value = read(stats.cpu) if stats.cpu is not NO_CPU else None
        if value is not None:
            yield more, value

    return series


def _memory(read: Callable[[Memory], Value | None]) -> Callable[[Stats], Iterator[Series]]:
    def series(stats: Stats) -> Iterator[Series]:
        value = read(stats.memory) if stats.memory is not NO_MEMORY else None
        if value is not None:
            yield "", value

    return series


def _interfaces(field: str) -> Callable[[Stats], Iterator[Series]]:
    def series(stats: Stats) -> Iterator[Series]:
        for interface in stats.interfaces:
            yield f',interface="{escape(interface.name)}"', getattr(interface, field)

    return series


def _disks(field: str) -> Callable[[Stats], Iterator[Series]]:
    def series(stats: Stats) -> Iterator[Series]:
        for disk in stats.disks:
            device = f',device="{escape(disk.device)}",major="{disk.major}",minor="{disk.minor}"'
            yield device, getattr(disk, field)

    return series


def _limited(value: int) -> int | None:
    return value or None


# Name, type, help, and the series of one container.
METRICS: tuple[tuple[str, str, str, Callable[[Stats], Iterator[Series]]], ...] = (
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        _cpu(lambda c: c.usage_ns * _NS, ',cpu="total"'),
    ),
    (
        "container_cpu_user_seconds_total",
        "counter",
        "Cumulative user cpu time consumed in seconds.",
        _cpu(lambda c: c.user_ns * _NS),
    ),
    (
        "container_cpu_system_seconds_total",
        "counter",
        "Cumulative system cpu time consumed in seconds.",
        _cpu(lambda c: c.system_ns * _NS),
    ),
    (
        "container_cpu_cfs_periods_total",
        "counter",
        "Number of elapsed enforcement period intervals.",
        _cpu(lambda c: c.periods),
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        "counter",
        "Number of throttled period intervals.",
        _cpu(lambda c: c.throttled_periods),
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Total time duration the container has been throttled.",
        _cpu(lambda c: c.throttled_ns * _NS),
    ),
    ("container_spec_cpu_shares", "gauge", "CPU share of the container.", _cpu(lambda c: c.shares)),
    (
        "container_spec_cpu_quota",
        "gauge",
        "CPU quota of the container.",
        _cpu(lambda c: _limited(c.quota_us)),
    ),
    (
        "container_spec_cpu_period",
        "gauge",
        "CPU period of the container.",
        _cpu(lambda c: c.period_us),
    ),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed.",
        _memory(lambda m: m.usage),
    ),
    (
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set in bytes.",
        _memory(lambda m: m.working_set),
    ),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", _memory(lambda m: m.rss)),
    (
        "container_memory_cache",
        "gauge",
        "Number of bytes of page cache memory.",
        _memory(lambda m: m.cache),
    ),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", _memory(lambda m: m.swap)),
    (
        "container_memory_mapped_file",
        "gauge",
        "Size of memory mapped files in bytes.",
        _memory(lambda m: m.mapped_file),
    ),
    (
        "container_memory_failcnt",
        "counter",
        "Number of memory usage hits limits.",
        _memory(lambda m: m.failures),
    ),
    (
        "container_memory_max_usage_bytes",
        "gauge",
        "Maximum memory usage recorded in bytes.",
        _memory(lambda m: m.max_usage),
    ),
    (
        "container_oom_events_total",
        "counter",
        "Count of out of memory events observed for the container.",
        _memory(lambda m: m.oom_kills),
    ),
    (
        "container_spec_memory_limit_bytes",
        "gauge",
        "Memory limit for the container.",
        _memory(lambda m: m.limit),
    ),
    (
        "container_network_receive_bytes_total",
        "counter",
        "Cumulative count of bytes received.",
        _interfaces("received_bytes"),
    ),
    (
        "container_network_receive_packets_total",
        "counter",
        "Cumulative count of packets received.",
        _interfaces("received_packets"),
    ),
    (
        "container_network_receive_errors_total",
        "counter",
        "Cumulative count of errors encountered while receiving.",
        _interfaces("receive_errors"),
    ),
    (
        "container_network_receive_packets_dropped_total",
        "counter",
        "Cumulative count of packets dropped while receiving.",
        _interfaces("receive_dropped"),
    ),
    (
        "container_network_transmit_bytes_total",
        "counter",
        "Cumulative count of bytes transmitted.",
        _interfaces("sent_bytes"),
    ),
    (
        "container_network_transmit_packets_total",
        "counter",
        "Cumulative count of packets transmitted.",
        _interfaces("sent_packets"),
    ),
    (
        "container_network_transmit_errors_total",
        "counter",
        "Cumulative count of errors encountered while transmitting.",
        _interfaces("send_errors"),
    ),
    (
        "container_network_transmit_packets_dropped_total",
        "counter",
        "Cumulative count of packets dropped while transmitting.",
        _interfaces("send_dropped"),
    ),
    (
        "container_fs_reads_bytes_total",
        "counter",
        "Cumulative count of bytes read",
        _disks("read_bytes"),
    ),
    (
        "container_fs_writes_bytes_total",
        "counter",
        "Cumulative count of bytes written",
        _disks("write_bytes"),
    ),
    ("container_fs_reads_total", "counter", "Cumulative count of reads completed", _disks("reads")),
    ("container_fs_writes_total", "counter", "Cumulative count of writes completed", _disks("writes")),
    (
        "container_processes",
        "gauge",
        "Number of processes running inside the container.",
        _plain(lambda s: s.processes.processes),
    ),
    (
        "container_threads",
        "gauge",
        "Number of threads running inside the container.",
        _plain(lambda s: s.processes.threads),
    ),
    (
        "container_threads_max",
        "gauge",
        "Maximum number of threads allowed inside the container, infinity if value is zero.",
        _plain(lambda s: s.processes.thread_limit),
    ),
    (
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds.",
        _plain(lambda s: s.identity.created.timestamp() if s.identity.created else None),
    ),
)


def escape(text: str) -> str:
    """Escape a label's value."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def prefix(stats: Stats) -> str:
    """Write the labels that every series of a container has."""
    who = stats.identity
    values = {
        "container": who.container,
        "id": who.path,
        "image": who.image,
        "name": who.id,
        "namespace": who.namespace,
        "pod": who.pod,
    }
    return ",".join(f'{name}="{escape(value)}"' for name, value in values.items())


def render(snapshot: Snapshot) -> str:
    """Write the whole page."""
    everyone = [(stats, prefix(stats)) for stats in (snapshot.machine, *snapshot.containers)]
    lines: list[str] = []
    for name, kind, text, series in METRICS:
        lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
        lines += _lines(name, everyone, series)
    lines += (
        "# HELP container_scrape_error 1 if there was an error while getting container metrics, 0 otherwise",
        "# TYPE container_scrape_error gauge",
        f"container_scrape_error {int(bool(snapshot.metadata_error))}",
    )
    return "\n".join(lines) + "\n"


def _lines(
    name: str, everyone: Iterable[tuple[Stats, str]], series: Callable[[Stats], Iterator[Series]]
) -> Iterator[str]:
    for stats, labels in everyone:
        for more, value in series(stats):
            yield f"{name}{{{labels}{more}}} {value}"
