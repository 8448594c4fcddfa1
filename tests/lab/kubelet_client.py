"""A client of a kubelet process that may be killed at any time: it asks until it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from services.common.errors import Code, RemoteError
from services.common.grpcclient import call, stream
from tests.matrix.process import Failure, Service, until

T = TypeVar("T")
_AGAIN = (Code.UNAVAILABLE, Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.ABORTED)


@dataclass(kw_only=True)
class KubeletClient:
    """Speaks to `service` over `channel`; a life that ended by SIGKILL is followed by another."""

    service: Service
    channel: Any
    acknowledged: set[str] = field(default_factory=set)
    patience_seconds: float = 20.0
    # Parts of the ledger that this node's runtime does not keep.
    unaudited: frozenset[str] = frozenset()

    async def ask(self, method: Callable[[], Awaitable[T]]) -> T:
        """Call until it is answered; a dead kubelet is started again. A refusal is a failure."""
        for _ in range(400):
            try:
                return await method()
            except RemoteError as error:
                if error.code not in _AGAIN:
                    raise Failure(f"refused: {error.reason} {error.message}") from error
            await self.service.revive()
            await asyncio.sleep(0.05)
        raise Failure(f"I2 convergence: the kubelet does not answer: {self.service.tail()}")

    async def until(
        self, holds: Callable[[], Awaitable[bool]], what: str, seconds: float | None = None
    ) -> None:
        """Wait for a condition with a limit. Raises `Failure`."""
        await until(holds, what, seconds or self.patience_seconds)

    async def pods(self) -> dict[str, pod_pb.Pod]:
        """Return the statuses by name."""
        stub = pod_grpc.PodServiceStub(self.channel)
        answer = await self.ask(
            lambda: call(stub.ListPods, pod_pb.ListPodsRequest(namespace="default"), deadline_seconds=5)
        )
        return {found.name: found for found in answer.pods}

    async def apply(self, *objects: dict[str, Any]) -> None:
        """Apply; what was answered once is never applied again by us."""
        text = "\n---\n".join(map(json.dumps, objects)).encode()
        stub = object_grpc.ObjectServiceStub(self.channel)
        request = object_pb.ApplyObjectsRequest(manifest=text)
        await self.ask(lambda: call(stub.ApplyObjects, request, deadline_seconds=5))
        self.acknowledged |= {value["metadata"]["name"] for value in objects}

    async def delete(self, *names: str) -> None:
        """Delete pods."""
        stub = object_grpc.ObjectServiceStub(self.channel)
        refs = [object_pb.ObjectRef(kind="Pod", namespace="default", name=name) for name in names]
        request = object_pb.DeleteObjectsRequest(refs=refs)
        await self.ask(lambda: call(stub.DeleteObjects, request, deadline_seconds=5))
        self.acknowledged -= set(names)

    async def ready(self, name: str, restarts: int = 0) -> pod_pb.Pod:
        """Wait until a pod is ready with a restart count of its first container."""
        found: list[pod_pb.Pod] = []

        async def holds() -> bool:
            pods = await self.pods()
            if name in self.acknowledged and name not in pods:
                await self._objects_have(name)
            if name not in pods:
                return False
            found[:] = [pods[name]]
            counts = [c.restart_count for c in pods[name].containers]
            if max(counts, default=0) > restarts:
                raise Failure(f"I1 continuity: {name} was restarted: {counts}, wanted {restarts}")
            return pods[name].ready and counts[0] == restarts

        await self.until(holds, f"{name} is ready with {restarts} restarts: {found}")
        return found[0]

    async def _objects_have(self, name: str) -> None:
        stub = object_grpc.ObjectServiceStub(self.channel)
        request = object_pb.ListObjectsRequest(kind="Pod", namespace="default")
        answer = await self.ask(lambda: call(stub.ListObjects, request, deadline_seconds=5))
        names = {json.loads(value)["metadata"]["name"] for value in answer.objects}
        if name not in names:
            raise Failure(f"I5 no loss: {name} was acknowledged and is gone")

    async def gone(self, *names: str) -> None:
        """Wait until pods are gone."""

        async def holds() -> bool:
            return not set(names) & set(await self.pods())

        await self.until(holds, f"{names} are gone")

    async def audit(self) -> node_pb.AuditResponse:
        """Take the ledger."""
        stub = node_grpc.NodeServiceStub(self.channel)
        answer: node_pb.AuditResponse = await self.ask(
            lambda: call(stub.Audit, node_pb.AuditRequest(), deadline_seconds=10)
        )
        return answer

    async def clean(self) -> None:
        """Wait until the audit is complete and finds nothing. Raises `Failure` with what it finds."""
        findings: list[str] = []

        async def holds() -> bool:
            answer = await self.audit()
            findings[:] = [f"{f.category} {f.id[:40]} {f.message}" for f in answer.findings]
            missing = {name: why for name, why in answer.unavailable.items() if name not in self.unaudited}
            findings.extend(f"{name} not looked at: {why}" for name, why in missing.items())
            return not findings

        try:
            await self.until(holds, "the audit is empty")
        except Failure as error:
            raise Failure(f"I4 no leak: {findings}") from error

    async def conditions(self) -> dict[str, node_pb.NodeCondition]:
        """Return the node's conditions by type."""
        stub = node_grpc.NodeServiceStub(self.channel)
        answer = await self.ask(lambda: call(stub.GetNode, node_pb.GetNodeRequest(), deadline_seconds=5))
        return {condition.type: condition for condition in answer.node.conditions}

    async def events(self, pod: str) -> list[pod_pb.Event]:
        """Return the remembered events of a pod, the oldest first."""
        stub = pod_grpc.PodServiceStub(self.channel)
        request = pod_pb.WatchEventsRequest(namespace="default", pod_name=pod, only_remembered=True)
        async with stream(stub.WatchEvents, request, deadline_seconds=10) as answers:
            return [answer.event async for answer in answers if answer.HasField("event")]

    async def logs(self, pod: str, container: str = "app", *, previous: bool = False) -> list[bytes]:
        """Return the lines of a container as users read them, parts joined."""
        stub = pod_grpc.PodServiceStub(self.channel)
        request = pod_pb.LogsRequest(
            namespace="default", pod_name=pod, container=container, previous=previous
        )
        text = bytearray()
        async with stream(stub.Logs, request, deadline_seconds=30) as answers:
            async for answer in answers:
                text += answer.line + (b"" if answer.partial else b"\n")
        return bytes(text).splitlines()
