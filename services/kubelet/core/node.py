"""What the node says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from services.kubelet.core import quantity
from services.kubelet.core.node_images import Image

POD_LIMIT = 110
_MIN_AVAILABLE_MEMORY_BYTES = 100 << 20
_MIN_FREE_DISK_SHARE = 0.10
_MAX_PROCESS_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """One condition of the node."""

    type: str
    holds: bool
    reason: str
    message: str
    since: datetime | None = None
    looked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RuntimeHandler:
    """One of the runtime's handlers, which a RuntimeClass names; the default one has no name."""

    name: str
    recursive_read_only: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeFeatures:
    """What the runtime says that it can. `strict_groups` is the supplemental groups policy."""

    handlers: tuple[RuntimeHandler, ...] = ()
    strict_groups: bool = False


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The node: what it is, what it has, how it fares."""

    name: str
    capacity: Mapping[str, str]
    allocatable: Mapping[str, str]
    addresses: tuple[tuple[str, str], ...]
    info: Mapping[str, str]
    pod_cidr: str
    service_cidr: str
    conditions: tuple[NodeCondition, ...] = field(default=())
    system_uuid: str = ""
    swap_bytes: int = 0
    # None while the runtime has not told.
    runtime: RuntimeFeatures | None = None
    # The largest ones; None while they are not known.
    images: tuple[Image, ...] | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """One of the node's disks: what it holds, for people, and the free share of it, 0 to 1."""

    holds: str
    free_share: float


@dataclass(frozen=True, slots=True)
class Look:
    """What was measured just now. `faults` says why pods could not run; empty means that they can."""

    faults: Sequence[str]
    available_memory_bytes: int
    disks: Sequence[Disk]
    process_share: float


def standard_labels(name: str, architecture: str) -> dict[str, str]:
    """Return the labels that every node has."""
    return {
        "kubernetes.io/arch": architecture,
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
    }


def countable(cpu_count: int, memory_bytes: int, disk_bytes: int) -> dict[str, int]:
    """Return what pods may request of the node: cpu in millicores, the rest in bytes, and pods."""
    return {
        "cpu": cpu_count * 1000,
        "memory": memory_bytes,
        "ephemeral-storage": disk_bytes,
        "pods": POD_LIMIT,
    }


def capacity(cpu_count: int, memory_bytes: int, disk_bytes: int) -> dict[str, str]:
    """Write what the node has as quantities."""
    return {
        "cpu": str(cpu_count),
        "memory": f"{memory_bytes >> 10}Ki",
        "ephemeral-storage": quantity.format_bytes(disk_bytes),
        "pods": str(POD_LIMIT),
    }


def judge(status: NodeStatus, look: Look, now: datetime) -> NodeStatus:
    """Fold a look into the node; a condition keeps its time while it does not change."""
    before = {condition.type: condition for condition in status.conditions}
    return replace(status, conditions=tuple(_timed(c, before.get(c.type), now) for c in _conditions(look)))


def _conditions(look: Look) -> list[NodeCondition]:
    low_memory = look.available_memory_bytes < _MIN_AVAILABLE_MEMORY_BYTES
    fullest = min(look.disks, key=lambda disk: disk.free_share)
    low_disk = fullest.free_share < _MIN_FREE_DISK_SHARE
    low_processes = look.process_share > _MAX_PROCESS_SHARE
    ready = not look.faults
    return [
        NodeCondition(
            "MemoryPressure",
            low_memory,
            "KubeletHasInsufficientMemory" if low_memory else "KubeletHasSufficientMemory",
            f"{quantity.format_bytes(look.available_memory_bytes >> 20 << 20)} are available",
        ),
        NodeCondition(
            "DiskPressure",
            low_disk,
            "KubeletHasDiskPressure" if low_disk else "KubeletHasNoDiskPressure",
            f"{fullest.free_share:.0%} of the disk of {fullest.holds} is free",
        ),
        NodeCondition(
            "PIDPressure",
            low_processes,
            "KubeletHasInsufficientPID" if low_processes else "KubeletHasSufficientPID",
            f"{look.process_share:.0%} of the process ids are in use",
        ),
        NodeCondition(
            "Ready",
            ready,
            "KubeletReady" if ready else "KubeletNotReady",
            "; ".join(look.faults) or "The kubelet runs pods",
        ),
    ]


def _timed(condition: NodeCondition, before: NodeCondition | None, now: datetime) -> NodeCondition:
    since = before.since if before is not None and before.holds is condition.holds else now
    return replace(condition, since=since, looked_at=now)
