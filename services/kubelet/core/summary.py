"""What the node and its pods use: the Summary API. Pure.

Source: k8s.io/kubelet `stats/v1alpha1` Summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from services.kubelet.core.render import rfc3339
from services.kubelet.core.status import PodStatus

SANDBOX_NAME = "POD"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU, memory and processes at a moment; `start_time` is when they began to count."""

    time: datetime
    cpu_nanocores: int | None
    cpu_usage_nanoseconds: int
    memory_working_set_bytes: int
    memory_usage_bytes: int
    memory_rss_bytes: int
    memory_available_bytes: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0
    swap_bytes: int = 0
    process_count: int = 0
    start_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class InterfaceUsage:
    """Bytes through one interface, and what went wrong."""

    name: str
    received_bytes: int
    receive_errors: int
    sent_bytes: int
    send_errors: int


@dataclass(frozen=True, slots=True)
class NetworkUsage:
    """Bytes through a network namespace, together and by interface."""

    time: datetime
    received_bytes: int
    sent_bytes: int
    interfaces: tuple[InterfaceUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class FilesystemUsage:
    """A filesystem at a moment. `used_bytes` may be of a part of it alone."""

    time: datetime
    available_bytes: int
    capacity_bytes: int
    used_bytes: int
    inodes_free: int
    inodes: int


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What the kubelet measures of the node itself; None where it cannot be seen from here."""

    time: datetime
    state: FilesystemUsage | None
    images: FilesystemUsage | None
    process_limit: int
    process_count: int


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
    sandbox: Usage | None = None


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
        sandbox=sandbox.usage if sandbox else None,
    )


def to_json(
    summary: Summary, node: NodeUsage | None = None, *, only_cpu_and_memory: bool = False
) -> dict[str, Any]:
    """Write the Summary API's JSON, with our reason where there is nothing measured."""
    made: dict[str, Any] = {"nodeName": summary.node_name, **_usage(summary.node)}
    if not only_cpu_and_memory:
        if summary.node_network:
            made["network"] = _network(summary.node_network)
        made |= _own(node)
    pods = [_pod_json(pod, only_cpu_and_memory=only_cpu_and_memory) for pod in summary.pods]
    whole: dict[str, Any] = {"node": made, "pods": pods}
    return {**whole, "unavailableReason": summary.unavailable_reason} if summary.unavailable_reason else whole


def _own(node: NodeUsage | None) -> dict[str, Any]:
    """Write what the kubelet itself measured."""
    if node is None:
        return {}
    made: dict[str, Any] = {
        "rlimit": {
            "time": rfc3339(node.time),
            "maxpid": node.process_limit,
            "curproc": node.process_count,
        }
    }
    if node.state is not None:
        made["fs"] = _filesystem(node.state)
    if node.images is not None:
        made["runtime"] = {name: _filesystem(node.images) for name in ("imageFs", "containerFs")}
    return made


def _filesystem(usage: FilesystemUsage) -> dict[str, Any]:
    return {
        "time": rfc3339(usage.time),
        "availableBytes": usage.available_bytes,
        "capacityBytes": usage.capacity_bytes,
        "usedBytes": usage.used_bytes,
        "inodesFree": usage.inodes_free,
        "inodes": usage.inodes,
        "inodesUsed": usage.inodes - usage.inodes_free,
    }


def _pod_json(pod: PodUsage, *, only_cpu_and_memory: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "startTime": rfc3339(pod.start_time),
        "containers": [{"name": name, **_usage(usage)} for name, usage in pod.containers],
    }
    total = pod_total(pod)
    if total is None:
        return made
    made |= _usage(replace(total, start_time=None))
    if only_cpu_and_memory:
        return made
    made["process_stats"] = {"process_count": total.process_count}
    return {**made, "network": _network(pod.network)} if pod.network else made


def pod_total(pod: PodUsage) -> Usage | None:
    """Add up what a pod's containers and its sandbox use; None when nothing was measured."""
    parts = [usage for _, usage in pod.containers if usage is not None]
    if not parts:
        return None
    parts += [pod.sandbox] if pod.sandbox is not None else []
    rates = [usage.cpu_nanocores for usage in parts if usage.cpu_nanocores is not None]
    limits = [usage.memory_available_bytes for usage in parts]
    known = [limit for limit in limits if limit is not None]
    return Usage(
        time=max(usage.time for usage in parts),
        cpu_nanocores=sum(rates) if rates else None,
        cpu_usage_nanoseconds=sum(usage.cpu_usage_nanoseconds for usage in parts),
        memory_working_set_bytes=sum(usage.memory_working_set_bytes for usage in parts),
        memory_usage_bytes=sum(usage.memory_usage_bytes for usage in parts),
        memory_rss_bytes=sum(usage.memory_rss_bytes for usage in parts),
        # A pod has a limit when each of its parts has one.
        memory_available_bytes=sum(known) if len(known) == len(limits) else None,
        page_faults=sum(usage.page_faults for usage in parts),
        major_page_faults=sum(usage.major_page_faults for usage in parts),
        swap_bytes=sum(usage.swap_bytes for usage in parts),
        process_count=sum(usage.process_count for usage in parts),
    )


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
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_page_faults,
    }
    if usage.memory_available_bytes is not None:
        memory["availableBytes"] = usage.memory_available_bytes
    made: dict[str, Any] = {"cpu": cpu, "memory": memory}
    if usage.start_time is not None:
        made["startTime"] = rfc3339(usage.start_time)
    if usage.swap_bytes:
        made["swap"] = {"time": time, "swapUsageBytes": usage.swap_bytes}
    return made


def _network(usage: NetworkUsage) -> dict[str, Any]:
    made: dict[str, Any] = {
        "time": rfc3339(usage.time),
        "name": "eth0",
        "rxBytes": usage.received_bytes,
        "txBytes": usage.sent_bytes,
    }
    if not usage.interfaces:
        return made
    default = next((i for i in usage.interfaces if i.name == "eth0"), usage.interfaces[0])
    interfaces = [_interface(interface) for interface in usage.interfaces]
    return {**made, **_interface(default), "interfaces": interfaces}


def _interface(usage: InterfaceUsage) -> dict[str, Any]:
    return {
        "name": usage.name,
        "rxBytes": usage.received_bytes,
        "rxErrors": usage.receive_errors,
        "txBytes": usage.sent_bytes,
        "txErrors": usage.send_errors,
    }
