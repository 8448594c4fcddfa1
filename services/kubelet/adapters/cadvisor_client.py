"""cAdvisor's statistics over gRPC and its metrics over HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import aiohttp
import grpc
from tripod.cadvisor.v1 import stats_service_pb2 as pb
from tripod.cadvisor.v1 import stats_service_pb2_grpc as pb_grpc

from services.common.errors import Code
from services.common.grpcclient import call
from services.kubelet.core.summary import ContainerUsage, InterfaceUsage, NetworkUsage, Stats, Usage
from services.kubelet.errors import KubeletError

_DEADLINE_SECONDS = 2.0


class CadvisorClient:
    """Asks one cAdvisor. The channel is closed by its opener."""

    def __init__(self, channel: grpc.aio.Channel, metrics_url: str) -> None:
        self._stub = pb_grpc.StatsServiceStub(channel)
        self._url = metrics_url

    async def stats(self) -> Stats:
        """Return the latest snapshot. Raises `TripodError` when cAdvisor does not answer."""
        answer = await call(self._stub.ListStats, pb.ListStatsRequest(), deadline_seconds=_DEADLINE_SECONDS)
        snapshot = answer.snapshot
        return Stats(
            machine=_usage(snapshot.machine, snapshot),
            machine_network=_network(snapshot.machine, snapshot),
            containers=tuple(_container(item, snapshot) for item in snapshot.containers),
        )

    async def metrics(self) -> bytes:
        """Return cAdvisor's metrics page. Raises `KubeletError` when it does not answer."""
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS * 2), aiohttp.ClientSession() as session:
                async with session.get(self._url) as answer:
                    answer.raise_for_status()
                    return await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise KubeletError(
                f"cAdvisor does not answer at {self._url}: {error or 'no answer in time'}",
                code=Code.UNAVAILABLE,
                reason="CADVISOR_UNREACHABLE",
            ) from error


def _time(snapshot: pb.Snapshot) -> datetime:
    return snapshot.sample_time.ToDatetime(tzinfo=UTC)


def _usage(item: pb.ContainerStats, snapshot: pb.Snapshot) -> Usage:
    memory = item.memory
    return Usage(
        time=_time(snapshot),
        cpu_nanocores=item.cpu.usage_nanocores if item.cpu.HasField("usage_nanocores") else None,
        cpu_usage_nanoseconds=item.cpu.usage_core_nanoseconds,
        memory_working_set_bytes=memory.working_set_bytes,
        memory_usage_bytes=memory.usage_bytes,
        memory_rss_bytes=memory.rss_bytes,
        memory_available_bytes=memory.available_bytes if memory.HasField("available_bytes") else None,
        page_faults=memory.page_faults,
        major_page_faults=memory.major_page_faults,
        swap_bytes=memory.swap_bytes,
        process_count=item.processes.process_count,
        start_time=_begin(item),
    )


def _begin(item: pb.ContainerStats) -> datetime | None:
    if not item.attributes.HasField("create_time"):
        return None
    return item.attributes.create_time.ToDatetime(tzinfo=UTC)


def _network(item: pb.ContainerStats, snapshot: pb.Snapshot) -> NetworkUsage | None:
    if not item.network_interfaces:
        return None
    return NetworkUsage(
        time=_time(snapshot),
        received_bytes=sum(interface.received_bytes for interface in item.network_interfaces),
        sent_bytes=sum(interface.sent_bytes for interface in item.network_interfaces),
        interfaces=tuple(
            InterfaceUsage(i.name, i.received_bytes, i.receive_errors, i.sent_bytes, i.send_errors)
            for i in item.network_interfaces
        ),
    )


def _container(item: pb.ContainerStats, snapshot: pb.Snapshot) -> ContainerUsage:
    return ContainerUsage(
        pod_uid=item.attributes.pod_uid,
        name=item.attributes.container_name,
        usage=_usage(item, snapshot),
        network=_network(item, snapshot),
    )
