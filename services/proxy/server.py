"""ProxyService: what was decided and programmed. Reads only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.proxy.v1 import proxy_service_pb2 as pb
from tripod.proxy.v1 import proxy_service_pb2_grpc as pb_grpc

from services.common import process
from services.common.clock import Clock
from services.common.watch import Bookmark, Deleted, WatchHub
from services.proxy.core import model
from services.proxy.core.audit import Audited, Finding
from services.proxy.core.model import Decision, Endpoint, PortDecision

_PROTOCOLS = {
    model.Protocol.TCP: object_pb.PROTOCOL_TCP,
    model.Protocol.UDP: object_pb.PROTOCOL_UDP,
    model.Protocol.SCTP: object_pb.PROTOCOL_SCTP,
}


class Noted(Protocol):
    """What is noted of a service's programming."""

    decided_revision: int
    programmed_revision: int
    time_ns: int
    error: str


class ProxyServicer(pb_grpc.ProxyServiceServicer):
    """Serves the decisions. `noted` gives a service's programming, `local_fault` that of a local port.

    `auditors` each compare a part of the kernel; `repair_count` says how often rules were put back.
    """

    def __init__(
        self,
        hub: WatchHub[Decision],
        *,
        noted: Callable[[str], Noted | None],
        local_fault: Callable[[str, int], str],
        auditors: Sequence[Callable[[], Awaitable[Audited]]],
        repair_count: Callable[[], int],
        clock: Clock,
    ) -> None:
        self._hub = hub
        self._noted = noted
        self._local_fault = local_fault
        self._auditors = auditors
        self._repair_count = repair_count
        self._clock = clock

    async def ListServices(self, request: pb.ListServicesRequest, context: Any) -> pb.ListServicesResponse:
        """List services with where they lead."""
        found = [d for d in self._hub.snapshot().values() if request.namespace in ("", d.service.namespace)]
        found.sort(key=lambda decision: (decision.service.namespace, decision.service.name))
        return pb.ListServicesResponse(services=[self._service(decision) for decision in found])

    def _service(self, decision: Decision) -> pb.ProgrammedService:
        service, noted = decision.service, self._noted(decision.service.uid)
        message = pb.ProgrammedService(
            uid=service.uid,
            namespace=service.namespace,
            name=service.name,
            cluster_ip=service.cluster_ip,
            ports=[self._port(port) for port in decision.ports],
            decided_revision=service.revision,
            programmed_revision=noted.programmed_revision if noted else 0,
            error=noted.error if noted else "not programmed yet",
            refusals=[pb.FieldRefusal(field=r.path, description=r.why) for r in service.refusals],
            affinity_timeout_seconds=service.affinity_seconds,
            external_traffic_local=service.external_local,
            internal_traffic_local=service.internal_local,
            external_addresses=[*service.external_ips, *service.balancer_ips],
            health_check_node_port=service.health_port,
        )
        if noted and noted.time_ns:
            message.program_time.FromNanoseconds(noted.time_ns)
        return message

    def _port(self, decision: PortDecision) -> pb.ProgrammedPort:
        port = decision.port
        fault = self._local_fault(port.protocol.value, port.node_port) if port.node_port else ""
        return pb.ProgrammedPort(
            name=port.name,
            protocol=_PROTOCOLS[port.protocol],
            port=port.port,
            node_port=port.node_port,
            endpoints=[_endpoint(endpoint) for endpoint in decision.used()],
            localhost_error=fault,
        )

    async def WatchEndpoints(
        self, request: pb.WatchEndpointsRequest, context: Any
    ) -> AsyncIterator[pb.WatchEndpointsResponse]:
        """Stream decisions with their reasons."""
        async for change in self._hub.watch(request.after_revision, request.server_run_id):
            answer = pb.WatchEndpointsResponse(revision=change.revision, server_run_id=self._hub.run_id)
            if isinstance(change, Bookmark):
                answer.bookmark.time.FromDatetime(self._clock.now())
            elif isinstance(change, Deleted):
                answer.service_deleted_uid = change.key
            else:
                answer.endpoints_upserted.CopyFrom(_decision(change.value))
            yield answer

    async def Audit(self, request: pb.AuditRequest, context: Any) -> pb.AuditResponse:
        """Compare the kernel with what was decided."""
        made = [await auditor() for auditor in self._auditors]
        findings = sorted((f for one in made for f in one.findings), key=lambda f: (f.category, f.id))
        counts = sorted((name, count) for one in made for name, count in one.counts.items())
        use = process.use()
        return pb.AuditResponse(
            findings=[_finding(finding) for finding in findings],
            categories=[node_pb.AuditCategory(name=name, found_count=count) for name, count in counts],
            unavailable={name: why for one in made for name, why in one.unavailable.items()},
            process=node_pb.ProcessUse(
                service="proxy",
                open_file_count=use.open_files,
                thread_count=use.threads,
                task_count=use.tasks,
                resident_bytes=use.resident_bytes,
            ),
            repair_count=self._repair_count(),
        )


def _finding(finding: Finding) -> node_pb.AuditFinding:
    problem = node_pb.AUDIT_PROBLEM_LEAKED if finding.leaked else node_pb.AUDIT_PROBLEM_MISSING
    return node_pb.AuditFinding(
        category=finding.category, id=finding.id, problem=problem, message=finding.message
    )


def _decision(decision: Decision) -> pb.ServiceEndpoints:
    return pb.ServiceEndpoints(
        service_uid=decision.service.uid,
        namespace=decision.service.namespace,
        name=decision.service.name,
        ports=[
            pb.PortEndpoints(
                name=port.port.name,
                protocol=_PROTOCOLS[port.port.protocol],
                port=port.port.port,
                endpoints=[_endpoint(endpoint) for endpoint in port.endpoints],
            )
            for port in decision.ports
        ],
    )


def _endpoint(endpoint: Endpoint) -> pb.Endpoint:
    return pb.Endpoint(
        pod_uid=endpoint.pod_uid,
        pod_name=endpoint.pod_name,
        address=endpoint.address,
        port=endpoint.port,
        used=endpoint.used,
        ready=endpoint.ready,
        serving=endpoint.serving,
        terminating=endpoint.terminating,
        reason=endpoint.reason,
        message=endpoint.message,
        local=endpoint.here,
        used_locally=endpoint.used_here,
    )
