"""The calls of RuntimeService that measure. Thin: `statistics` knows how."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri import metrics
from services.kubelet.cri.statistics import Statistics

T = TypeVar("T")
# A message of a stream stays far below what a client takes.
CHUNK_LENGTH = 100


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a list into messages of a stream; an empty list is no message."""
    for start in range(0, len(items), CHUNK_LENGTH):
        yield items[start : start + CHUNK_LENGTH]


class StatsCalls:
    """Serves statistics and metrics."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    async def ContainerStats(
        self, request: pb.ContainerStatsRequest, context: Any
    ) -> pb.ContainerStatsResponse:
        """Return what one container uses."""
        return pb.ContainerStatsResponse(stats=await self._statistics.container(request.container_id))

    async def ListContainerStats(
        self, request: pb.ListContainerStatsRequest, context: Any
    ) -> pb.ListContainerStatsResponse:
        """Return what the running containers use that match the filter."""
        return pb.ListContainerStatsResponse(stats=await self._statistics.containers(request.filter))

    async def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest, context: Any
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        """Stream the same, each once."""
        for part in chunks(await self._statistics.containers(request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=part)

    async def PodSandboxStats(
        self, request: pb.PodSandboxStatsRequest, context: Any
    ) -> pb.PodSandboxStatsResponse:
        """Return what one sandbox with its containers uses."""
        return pb.PodSandboxStatsResponse(stats=await self._statistics.sandbox(request.pod_sandbox_id))

    async def ListPodSandboxStats(
        self, request: pb.ListPodSandboxStatsRequest, context: Any
    ) -> pb.ListPodSandboxStatsResponse:
        """Return what the running sandboxes use that match the filter."""
        return pb.ListPodSandboxStatsResponse(stats=await self._statistics.sandboxes(request.filter))

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest, context: Any
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        """Stream the same, each once."""
        for part in chunks(await self._statistics.sandboxes(request.filter)):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=part)

    async def ListMetricDescriptors(
        self, request: pb.ListMetricDescriptorsRequest, context: Any
    ) -> pb.ListMetricDescriptorsResponse:
        """Return which metrics there are."""
        return pb.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    async def ListPodSandboxMetrics(
        self, request: pb.ListPodSandboxMetricsRequest, context: Any
    ) -> pb.ListPodSandboxMetricsResponse:
        """Return the metrics of every running sandbox."""
        return pb.ListPodSandboxMetricsResponse(pod_metrics=await self._statistics.metrics())

    async def StreamPodSandboxMetrics(
        self, request: pb.StreamPodSandboxMetricsRequest, context: Any
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        """Stream the same, each once."""
        for part in chunks(await self._statistics.metrics()):
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=part)
