"""CRI messages of what containers and pods use. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.cgroupstats import Interface, Pressure, Stall, Usage
from services.kubelet.cri.convert import sandbox_metadata
from services.kubelet.cri.naming import Record

Owned = tuple[Mapping[str, Any], Record]


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a container at a moment (nanoseconds since the epoch); None is not known."""

    timestamp: int
    usage: Usage | None = None
    nanocores: int | None = None
    layer_bytes: int | None = None
    layer_timestamp: int = 0
    root: str = ""


def container(owned: Owned, look: Look) -> pb.ContainerStats:
    """Build the statistics of a container."""
    item, record = owned
    made = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=item["Id"],
            metadata=pb.ContainerMetadata(name=record.name, attempt=record.attempt),
            labels=record.labels,
            annotations=record.annotations,
        )
    )
    if look.usage is not None:
        made.cpu.CopyFrom(_cpu(look.usage, look))
        made.memory.CopyFrom(_memory(look.usage, look.timestamp))
        _add_swap(made, look.usage, look.timestamp)
        _add_io(made, look.usage, look.timestamp)
    if look.layer_bytes is not None:
        made.writable_layer.timestamp = look.layer_timestamp
        made.writable_layer.fs_id.mountpoint = look.root
        made.writable_layer.used_bytes.value = look.layer_bytes
    return made


def sandbox(
    owned: Owned,
    look: Look,
    interfaces: Sequence[Interface],
    containers: Sequence[tuple[Owned, Look]],
) -> pb.PodSandboxStats:
    """Build the statistics of a sandbox with its running containers."""
    item, record = owned
    made = pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=item["Id"],
            metadata=sandbox_metadata(record),
            labels=record.labels,
            annotations=record.annotations,
        )
    )
    if look.usage is not None:
        made.linux.cpu.CopyFrom(_cpu(look.usage, look))
        made.linux.memory.CopyFrom(_memory(look.usage, look.timestamp))
        made.linux.process.timestamp = look.timestamp
        made.linux.process.process_count.value = look.usage.process_count
        _add_io(made.linux, look.usage, look.timestamp)
    if interfaces:
        made.linux.network.CopyFrom(network(interfaces, look.timestamp))
    made.linux.containers.extend(container(*part) for part in containers)
    return made


def network(interfaces: Sequence[Interface], timestamp: int) -> pb.NetworkUsage:
    """Build what went through a pod's interfaces; the default one is `eth0`, or the first."""
    made = [
        pb.NetworkInterfaceUsage(
            name=i.name,
            rx_bytes=_value(i.received_bytes),
            rx_errors=_value(i.receive_errors),
            tx_bytes=_value(i.sent_bytes),
            tx_errors=_value(i.send_errors),
        )
        for i in sorted(interfaces, key=lambda i: i.name != "eth0")
    ]
    return pb.NetworkUsage(timestamp=timestamp, default_interface=made[0], interfaces=made[1:])


def _value(number: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=number)


def _cpu(usage: Usage, look: Look) -> pb.CpuUsage:
    made = pb.CpuUsage(timestamp=look.timestamp, usage_core_nano_seconds=_value(usage.cpu_ns))
    if look.nanocores is not None:
        made.usage_nano_cores.value = look.nanocores
    if "cpu" in usage.stalls:
        made.psi.CopyFrom(_psi(usage.stalls["cpu"]))
    return made


def _memory(usage: Usage, timestamp: int) -> pb.MemoryUsage:
    made = pb.MemoryUsage(
        timestamp=timestamp,
        working_set_bytes=_value(usage.working_set_bytes),
        usage_bytes=_value(usage.memory_bytes),
        rss_bytes=_value(usage.rss_bytes),
        page_faults=_value(usage.page_faults),
        major_page_faults=_value(usage.major_page_faults),
    )
    if usage.memory_limit_bytes:
        made.available_bytes.value = max(0, usage.memory_limit_bytes - usage.working_set_bytes)
    if "memory" in usage.stalls:
        made.psi.CopyFrom(_psi(usage.stalls["memory"]))
    return made


def _add_swap(made: pb.ContainerStats, usage: Usage, timestamp: int) -> None:
    if usage.swap_bytes is None:
        return
    made.swap.timestamp = timestamp
    made.swap.swap_usage_bytes.value = usage.swap_bytes
    if usage.swap_limit_bytes:
        made.swap.swap_available_bytes.value = max(0, usage.swap_limit_bytes - usage.swap_bytes)


def _add_io(made: pb.ContainerStats | pb.LinuxPodSandboxStats, usage: Usage, timestamp: int) -> None:
    if "io" in usage.stalls:
        made.io.timestamp = timestamp
        made.io.psi.CopyFrom(_psi(usage.stalls["io"]))


def _psi(stall: Stall) -> pb.PsiStats:
    return pb.PsiStats(Full=_pressure(stall.full), Some=_pressure(stall.some))


def _pressure(pressure: Pressure) -> pb.PsiData:
    # Nanoseconds, as runc's numbers are passed on.
    return pb.PsiData(
        Total=pressure.total_us * 1000,
        Avg10=pressure.average_10,
        Avg60=pressure.average_60,
        Avg300=pressure.average_300,
    )
