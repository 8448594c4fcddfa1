"""`/metrics/resource`: what metrics-server reads. Pure.

Source: kubernetes pkg/kubelet/metrics/collectors/resource_metrics.go; the names are stable.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from services.common.gauges import labelled
from services.kubelet.core.measures import number
from services.kubelet.core.summary import PodUsage, Summary, Usage, pod_total

_CONTAINER = ("container", "namespace", "pod")
_POD = ("namespace", "pod")
_NANO = 1e9
Sample = tuple[tuple[str, ...], float, datetime | None]

_HELP = {
    "node_cpu_usage_seconds_total": ("counter", "CPU time used by the node in core-seconds."),
    "node_memory_working_set_bytes": ("gauge", "Working set of the node in bytes."),
    "node_swap_usage_bytes": ("gauge", "Swap used by the node in bytes."),
    "container_cpu_usage_seconds_total": ("counter", "CPU time used by the container in core-seconds."),
    "container_memory_working_set_bytes": ("gauge", "Working set of the container in bytes."),
    "container_swap_usage_bytes": ("gauge", "Swap used by the container in bytes."),
    "container_start_time_seconds": ("gauge", "Start of the container in seconds of Unix time."),
    "pod_cpu_usage_seconds_total": ("counter", "CPU time used by the pod in core-seconds."),
    "pod_memory_working_set_bytes": ("gauge", "Working set of the pod in bytes."),
    "pod_swap_usage_bytes": ("gauge", "Swap used by the pod in bytes."),
}


def page(summary: Summary) -> bytes:
    """Write the page; `resource_scrape_error` is 1 when nothing was measured."""
    samples: dict[str, list[Sample]] = {name: [] for name in _HELP}
    if summary.node is not None:
        _add(samples, "node", (), summary.node)
    for pod in summary.pods:
        _add_pod(samples, pod)
    failed = int(bool(summary.unavailable_reason))
    lines = [line for name, found in samples.items() for line in _family(name, found)]
    lines += [
        "# HELP resource_scrape_error 1 if there was an error while getting metrics, 0 otherwise.",
        "# TYPE resource_scrape_error gauge",
        f"resource_scrape_error {failed}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _add_pod(samples: dict[str, list[Sample]], pod: PodUsage) -> None:
    for name, usage in pod.containers:
        if usage is None:
            continue
        labels = (name, pod.namespace, pod.name)
        _add(samples, "container", labels, usage)
        if usage.start_time is not None:
            start = usage.start_time.timestamp()
            samples["container_start_time_seconds"].append((labels, start, None))
    total = pod_total(pod)
    if total is not None:
        _add(samples, "pod", (pod.namespace, pod.name), total)


def _add(samples: dict[str, list[Sample]], whose: str, labels: tuple[str, ...], usage: Usage) -> None:
    cpu = usage.cpu_usage_nanoseconds / _NANO
    samples[f"{whose}_cpu_usage_seconds_total"].append((labels, cpu, usage.time))
    samples[f"{whose}_memory_working_set_bytes"].append((labels, usage.memory_working_set_bytes, usage.time))
    samples[f"{whose}_swap_usage_bytes"].append((labels, usage.swap_bytes, usage.time))


def _family(name: str, samples: list[Sample]) -> Iterator[str]:
    if not samples:
        return
    kind, words = _HELP[name]
    yield from (f"# HELP {name} {words}", f"# TYPE {name} {kind}")
    for values, value, moment in samples:
        labels = () if not values else _CONTAINER if len(values) == len(_CONTAINER) else _POD
        when = f" {int(moment.timestamp() * 1000)}" if moment else ""
        yield f"{labelled(name, labels, values)} {number(value)}{when}"
