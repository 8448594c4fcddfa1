"""What the node and its pods use: the Summary API. Pure.

Source: k8s.io/kubelet `stats/v1alpha1` Summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.kubelet.core.render import rfc3339
from services.kubelet.core.status import PodStatus

SANDBOX_NAME = "POD"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU and memory at a moment."""

    time: datetime
    cpu_nanocores: int | None
    cpu_usage_nanoseconds: int
    memory_working_set_bytes: int
    memory_usage_bytes: int
    memory_rss_bytes: int


@dataclass(frozen=True, slots=True)
class NetworkUsage:
    """Bytes through a network namespace."""

    time: datetime
    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """Use by one container; a sandbox has the name `POD` and the network."""

    pod_uid: str
    name: str
    usage: Usage
    network: NetworkUsage | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """One snapshot."""

    machine: Usage
    machine_network: NetworkUsage | None
    containers: tuple[ContainerUsage, ...]


@dataclass(frozen=True, slots=True)
class PodUsage:
    """Use by one pod."""

    namespace: str
    name: str
    uid: str
    start_time: datetime | None
    containers: tuple[tuple[str, Usage | None], ...]
    network: NetworkUsage | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Use by the node and its pods; `unavailable_reason` says why there is none."""

    node_name: str
    node: Usage | None
    node_network: NetworkUsage | None
    pods: tuple[PodUsage, ...]
    unavailable_reason: str = ""


def summarize(node_name: str, pods: Sequence[PodStatus], stats: Stats | None, reason: str = "") -> Summary:
    """Join pods and what was measured; without measurements the pods are listed bare."""
    found = {(c.pod_uid, c.name): c for c in stats.containers} if stats else {}
    ordered = sorted(pods, key=lambda pod: (pod.namespace, pod.name))
    return Summary(
        node_name=node_name,
        node=stats.machine if stats else None,
        node_network=stats.machine_network if stats else None,
        pods=tuple(_pod(pod, found) for pod in ordered),
        unavailable_reason=reason,
    )


def _pod(pod: PodStatus, found: dict[tuple[str, str], ContainerUsage]) -> PodUsage:
    usages = [(c.name, found.get((pod.uid, c.name))) for c in pod.every]
    sandbox = found.get((pod.uid, SANDBOX_NAME))
    return PodUsage(
        namespace=pod.namespace,
        name=pod.name,
        uid=pod.uid,
        start_time=pod.start_time,
        containers=tuple((name, usage.usage if usage else None) for name, usage in usages),
        network=sandbox.network if sandbox else None,
    )


def to_json(summary: Summary) -> dict[str, Any]:
    """Write the Summary API's JSON, with our reason where there is nothing measured."""
    node: dict[str, Any] = {"nodeName": summary.node_name, **_usage(summary.node)}
    if summary.node_network:
        node["network"] = _network(summary.node_network)
    made: dict[str, Any] = {"node": node, "pods": [_pod_json(pod) for pod in summary.pods]}
    return {**made, "unavailableReason": summary.unavailable_reason} if summary.unavailable_reason else made


def _pod_json(pod: PodUsage) -> dict[str, Any]:
    made: dict[str, Any] = {
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "startTime": rfc3339(pod.start_time),
        "containers": [{"name": name, **_usage(usage)} for name, usage in pod.containers],
    }
    usages = [usage for _, usage in pod.containers if usage is not None]
    if usages:
        made |= {
            "cpu": {"usageNanoCores": sum(u.cpu_nanocores or 0 for u in usages)},
            "memory": {"workingSetBytes": sum(u.memory_working_set_bytes for u in usages)},
        }
    return {**made, "network": _network(pod.network)} if pod.network else made


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    time = rfc3339(usage.time)
    cpu: dict[str, Any] = {"time": time, "usageCoreNanoSeconds": usage.cpu_usage_nanoseconds}
    if usage.cpu_nanocores is not None:
        cpu["usageNanoCores"] = usage.cpu_nanocores
    memory = {
        "time": time,
        "usageBytes": usage.memory_usage_bytes,
        "workingSetBytes": usage.memory_working_set_bytes,
        "rssBytes": usage.memory_rss_bytes,
    }
    return {"cpu": cpu, "memory": memory}


def _network(usage: NetworkUsage) -> dict[str, Any]:
    return {
        "time": rfc3339(usage.time),
        "name": "eth0",
        "rxBytes": usage.received_bytes,
        "txBytes": usage.sent_bytes,
    }
