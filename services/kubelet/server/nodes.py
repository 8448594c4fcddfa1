"""NodeService: the node and what it uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tripod.kubelet.v1 import node_service_pb2 as pb
from tripod.kubelet.v1 import node_service_pb2_grpc as pb_grpc

from services.common import process
from services.kubelet.core.audit import Audit
from services.kubelet.core.node import NodeStatus
from services.kubelet.core.summary import Summary
from services.kubelet.server.convert import audit_message, node_message, summary_message


class NodeServicer(pb_grpc.NodeServiceServicer):
    """Serves the node."""

    def __init__(
        self,
        node: Callable[[], NodeStatus],
        summary: Callable[[], Awaitable[Summary]],
        auditor: Callable[[], Awaitable[tuple[Audit, Mapping[str, str]]]],
        refused: Callable[[], Mapping[str, str]],
    ) -> None:
        self._node = node
        self._summary = summary
        self._auditor = auditor
        self._refused = refused

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.GetNodeResponse:
        """Return the node as of the latest look."""
        return pb.GetNodeResponse(
            node=node_message(self._node()), refused_manifests=self._refused(), manifests_known=True
        )

    async def GetSummary(self, request: pb.GetSummaryRequest, context: Any) -> pb.GetSummaryResponse:
        """Return what the node and its pods use."""
        return summary_message(await self._summary())

    async def Audit(self, request: pb.AuditRequest, context: Any) -> pb.AuditResponse:
        """Compare what the host holds with what it should hold."""
        found, unavailable = await self._auditor()
        return audit_message(found, unavailable, process.use())
