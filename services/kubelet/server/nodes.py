"""NodeService: the node and what it uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tripod.kubelet.v1 import node_service_pb2 as pb
from tripod.kubelet.v1 import node_service_pb2_grpc as pb_grpc

from services.kubelet.core.node import NodeStatus
from services.kubelet.core.summary import Summary
from services.kubelet.server.convert import node_message, summary_message


class NodeServicer(pb_grpc.NodeServiceServicer):
    """Serves the node."""

    def __init__(self, node: Callable[[], NodeStatus], summary: Callable[[], Awaitable[Summary]]) -> None:
        self._node = node
        self._summary = summary

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.GetNodeResponse:
        """Return the node as of the latest look."""
        return pb.GetNodeResponse(node=node_message(self._node()))

    async def GetSummary(self, request: pb.GetSummaryRequest, context: Any) -> pb.GetSummaryResponse:
        """Return what the node and its pods use."""
        return summary_message(await self._summary())
