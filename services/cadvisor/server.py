"""StatsService: snapshots as messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from tripod.cadvisor.v1 import stats_service_pb2 as pb
from tripod.cadvisor.v1 import stats_service_pb2_grpc as pb_grpc

from services.cadvisor.core.model import (
    NO_CPU,
    NO_MEMORY,
    CgroupLayout,
    Cpu,
    Machine,
    Memory,
    Snapshot,
    Stats,
)
from services.cadvisor.errors import NoSampleError
from services.common.telemetry import VERSION

_LAYOUTS = {
    CgroupLayout.V1: pb.CGROUP_LAYOUT_V1,
    CgroupLayout.HYBRID: pb.CGROUP_LAYOUT_HYBRID,
    CgroupLayout.V2: pb.CGROUP_LAYOUT_V2,
}


class StatsServicer(pb_grpc.StatsServiceServicer):
    """Serves snapshots."""

    def __init__(
        self,
        latest: Callable[[], Snapshot | None],
        watch: Callable[[], AsyncIterator[Snapshot]],
        machine: Machine,
    ) -> None:
        self._latest = latest
        self._watch = watch
        self._machine = machine

    async def ListStats(self, request: pb.ListStatsRequest, context: Any) -> pb.ListStatsResponse:
        """Return the latest snapshot."""
        latest = self._latest()
        if latest is None:
            raise NoSampleError
        return pb.ListStatsResponse(snapshot=snapshot_message(latest, request.pod_uid))

    async def WatchStats(
        self, request: pb.WatchStatsRequest, context: Any
    ) -> AsyncIterator[pb.WatchStatsResponse]:
        """Stream snapshots."""
        async for snapshot in self._watch():
            yield pb.WatchStatsResponse(snapshot=snapshot_message(snapshot, request.pod_uid))

    async def GetMachineInfo(
        self, request: pb.GetMachineInfoRequest, context: Any
    ) -> pb.GetMachineInfoResponse:
        """Return what the machine is."""
        facts = self._machine
        message = pb.MachineInfo(
            cpu_count=facts.cpu_count,
            memory_bytes=facts.memory_bytes,
            swap_bytes=facts.swap_bytes,
            kernel_version=facts.kernel_version,
            os_image=facts.os_image,
            machine_id=facts.machine_id,
            boot_id=facts.boot_id,
            cgroup_layout=_LAYOUTS[facts.layout],
            cadvisor_version=VERSION,
        )
        if facts.boot_time is not None:
            message.boot_time.FromDatetime(facts.boot_time)
        return pb.GetMachineInfoResponse(machine_info=message)


def snapshot_message(snapshot: Snapshot, pod_uid: str = "") -> pb.Snapshot:
    """Convert a snapshot, of one pod or of all."""
    chosen = [s for s in snapshot.containers if pod_uid in ("", s.identity.pod_uid)]
    message = pb.Snapshot(
        machine=_stats(snapshot.machine),
        containers=[_stats(stats) for stats in chosen],
        metadata_error=snapshot.metadata_error,
        duration_nanoseconds=snapshot.duration_ns,
    )
    message.sample_time.FromDatetime(snapshot.time)
    return message


def _stats(stats: Stats) -> pb.ContainerStats:
    who = stats.identity
    message = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            cgroup_path=who.path,
            id=who.id,
            container_name=who.container,
            pod_name=who.pod,
            pod_namespace=who.namespace,
            pod_uid=who.pod_uid,
            image=who.image,
            labels=who.labels,
            restart_count=who.restarts,
        ),
        cpu=_cpu(stats.cpu) if stats.cpu is not NO_CPU else None,
        memory=_memory(stats.memory) if stats.memory is not NO_MEMORY else None,
        network_interfaces=[
            pb.NetworkInterfaceUsage(**{name: getattr(interface, name) for name in interface.__slots__})
            for interface in stats.interfaces
        ],
        disk_io=[
            pb.DiskIoUsage(
                major=disk.major,
                minor=disk.minor,
                device=disk.device,
                read_bytes=disk.read_bytes,
                write_bytes=disk.write_bytes,
                read_count=disk.reads,
                write_count=disk.writes,
            )
            for disk in stats.disks
        ],
        processes=pb.ProcessUsage(
            process_count=stats.processes.processes,
            thread_count=stats.processes.threads,
            thread_limit=stats.processes.thread_limit,
        ),
    )
    if who.created is not None:
        message.attributes.create_time.FromDatetime(who.created)
    return message


def _cpu(cpu: Cpu) -> pb.CpuUsage:
    return pb.CpuUsage(
        usage_core_nanoseconds=cpu.usage_ns,
        usage_nanocores=cpu.nanocores,
        user_nanoseconds=cpu.user_ns,
        system_nanoseconds=cpu.system_ns,
        period_count=cpu.periods,
        throttled_period_count=cpu.throttled_periods,
        throttled_nanoseconds=cpu.throttled_ns,
        shares=cpu.shares,
        quota_microseconds=cpu.quota_us,
        period_microseconds=cpu.period_us,
    )


def _memory(memory: Memory) -> pb.MemoryUsage:
    return pb.MemoryUsage(
        working_set_bytes=memory.working_set,
        usage_bytes=memory.usage,
        rss_bytes=memory.rss,
        cache_bytes=memory.cache,
        mapped_file_bytes=memory.mapped_file,
        swap_bytes=memory.swap,
        page_faults=memory.page_faults,
        major_page_faults=memory.major_page_faults,
        limit_bytes=memory.limit,
        available_bytes=max(0, memory.limit - memory.working_set) if memory.limit else None,
        failure_count=memory.failures,
        oom_kill_count=memory.oom_kills,
        max_usage_bytes=memory.max_usage,
    )
