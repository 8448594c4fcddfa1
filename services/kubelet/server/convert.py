"""Values to messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import pod_service_pb2 as pb

from services.common.process import ProcessUse
from services.kubelet.core.audit import Audit, Problem
from services.kubelet.core.events import Event
from services.kubelet.core.explain import Cause, Explanation, Scope, Verdict
from services.kubelet.core.logs import LogEntry
from services.kubelet.core.model import Container, Pod
from services.kubelet.core.node import NodeStatus
from services.kubelet.core.status import (
    ContainerState,
    ContainerStatus,
    PodPhase,
    PodStatus,
    StatePhase,
)
from services.kubelet.core.summary import NetworkUsage, Summary, Usage
from services.kubelet.server.objects import PROTOCOLS

_PHASES = {
    PodPhase.PENDING: pb.POD_PHASE_PENDING,
    PodPhase.RUNNING: pb.POD_PHASE_RUNNING,
    PodPhase.SUCCEEDED: pb.POD_PHASE_SUCCEEDED,
    PodPhase.FAILED: pb.POD_PHASE_FAILED,
}
_STATES = {
    StatePhase.WAITING: pb.CONTAINER_PHASE_WAITING,
    StatePhase.RUNNING: pb.CONTAINER_PHASE_RUNNING,
    StatePhase.TERMINATED: pb.CONTAINER_PHASE_TERMINATED,
}

_VERDICTS = {
    Verdict.READY: pb.POD_VERDICT_READY,
    Verdict.NOT_READY: pb.POD_VERDICT_NOT_READY,
    Verdict.FINISHED: pb.POD_VERDICT_FINISHED,
    Verdict.DELETING: pb.POD_VERDICT_DELETING,
}
_SCOPES = {
    Scope.NODE: pb.CAUSE_SCOPE_NODE,
    Scope.POD: pb.CAUSE_SCOPE_POD,
    Scope.CONTAINER: pb.CAUSE_SCOPE_CONTAINER,
}


def set_time(field: Any, moment: datetime | None) -> None:
    """Set a Timestamp field; None leaves it unset."""
    if moment is not None:
        field.FromDatetime(moment)


def _holds(value: bool) -> pb.ConditionStatus.ValueType:
    return pb.CONDITION_STATUS_TRUE if value else pb.CONDITION_STATUS_FALSE


def pod_message(status: PodStatus, pod: Pod | None) -> pb.Pod:
    """Convert a status; `pod` gives labels and ports while the source has it."""
    specs = {c.name: c for c in pod.spec.every} if pod else {}
    message = pb.Pod(
        uid=status.uid,
        namespace=status.namespace,
        name=status.name,
        labels=pod.labels if pod else {},
        phase=_PHASES[status.phase],
        ready=status.ready and not status.terminating,
        terminating=status.terminating,
        serving=status.serving,
        pod_ips=status.pod_ips,
        host_ip=status.host_ip,
        containers=[_container(c, specs.get(c.name)) for c in status.containers],
        init_containers=[_container(c, specs.get(c.name)) for c in status.init_containers],
        ephemeral_containers=[_container(c, specs.get(c.name)) for c in status.ephemeral_containers],
        reason=status.reason,
        message=status.message,
        trace_id=status.trace_id,
        termination_grace_period_seconds=pod.spec.termination_grace_period_seconds if pod else 0,
    )
    for condition in status.conditions:
        item = message.conditions.add(
            type=condition.type,
            status=_holds(condition.holds),
            reason=condition.reason,
            message=condition.message,
        )
        set_time(item.last_transition_time, condition.since)
    set_time(message.start_time, status.start_time)
    set_time(message.deletion_time, status.deletion_time)
    return message


def _container(status: ContainerStatus, spec: Container | None) -> pb.ContainerStatus:
    message = pb.ContainerStatus(
        name=status.name,
        image=status.image,
        image_id=status.image_id,
        container_id=status.container_id,
        ready=status.ready,
        started=status.started,
        restart_count=status.restart_count,
        state=_state(status.state),
        ports=[
            pb.ContainerPort(name=p.name, container_port=p.container_port, protocol=PROTOCOLS[p.protocol])
            for p in (spec.ports if spec else ())
        ],
    )
    if status.last_state is not None:
        message.last_termination_state.CopyFrom(_state(status.last_state))
    return message


def _state(state: ContainerState) -> pb.ContainerState:
    message = pb.ContainerState(phase=_STATES[state.phase], reason=state.reason, message=state.message)
    if state.exit_code is not None:
        message.exit_code = state.exit_code
    set_time(message.start_time, state.started_at)
    set_time(message.finish_time, state.finished_at)
    return message


def event_message(event: Event) -> pb.Event:
    """Convert an event."""
    message = pb.Event(
        namespace=event.namespace,
        pod_name=event.pod_name,
        pod_uid=event.pod_uid,
        container=event.container,
        reason=event.reason,
        message=event.message,
        type=pb.EVENT_TYPE_WARNING if event.warning else pb.EVENT_TYPE_NORMAL,
        count=event.count,
    )
    set_time(message.first_time, event.first_time)
    set_time(message.last_time, event.last_time)
    return message


def log_message(entry: LogEntry) -> pb.LogsResponse:
    """Convert an entry of a log."""
    stream = pb.OUTPUT_STREAM_STDERR if entry.stderr else pb.OUTPUT_STREAM_STDOUT
    message = pb.LogsResponse(stream=stream, line=entry.line, partial=entry.partial)
    message.time.FromJsonString(entry.time)
    return message


def node_message(status: NodeStatus) -> node_pb.Node:
    """Convert the node."""
    message = node_pb.Node(
        name=status.name,
        capacity=status.capacity,
        allocatable=status.allocatable,
        addresses=[node_pb.NodeAddress(type=kind, address=address) for kind, address in status.addresses],
        info=node_pb.NodeInfo(**dict(status.info)),
        pod_cidr=status.pod_cidr,
        service_cidr=status.service_cidr,
    )
    for condition in status.conditions:
        item = message.conditions.add(
            type=condition.type,
            status=_holds(condition.holds),
            reason=condition.reason,
            message=condition.message,
        )
        set_time(item.last_transition_time, condition.since)
        set_time(item.last_heartbeat_time, condition.looked_at)
    return message


def summary_message(summary: Summary) -> node_pb.GetSummaryResponse:
    """Convert the summary."""
    message = node_pb.GetSummaryResponse(
        node_name=summary.node_name, unavailable_reason=summary.unavailable_reason
    )
    if summary.node is not None:
        message.node.CopyFrom(_usage(summary.node))
    for pod in summary.pods:
        item = message.pods.add(namespace=pod.namespace, name=pod.name, uid=pod.uid)
        for name, usage in pod.containers:
            container = item.containers.add(name=name)
            if usage is not None:
                container.usage.CopyFrom(_usage(usage))
        if pod.network is not None:
            item.network.CopyFrom(_network(pod.network))
    return message


def _usage(usage: Usage) -> node_pb.Usage:
    message = node_pb.Usage(
        cpu_nanocores=usage.cpu_nanocores,
        cpu_usage_nanoseconds=usage.cpu_usage_nanoseconds,
        memory_working_set_bytes=usage.memory_working_set_bytes,
        memory_usage_bytes=usage.memory_usage_bytes,
        memory_rss_bytes=usage.memory_rss_bytes,
    )
    set_time(message.sample_time, usage.time)
    return message


def _network(usage: NetworkUsage) -> node_pb.NetworkUsage:
    message = node_pb.NetworkUsage(received_bytes=usage.received_bytes, sent_bytes=usage.sent_bytes)
    set_time(message.sample_time, usage.time)
    return message


_PROBLEMS = {
    Problem.LEAKED: node_pb.AUDIT_PROBLEM_LEAKED,
    Problem.MISSING: node_pb.AUDIT_PROBLEM_MISSING,
    Problem.DOUBLED: node_pb.AUDIT_PROBLEM_DOUBLED,
    Problem.FOREIGN: node_pb.AUDIT_PROBLEM_FOREIGN,
}


def audit_message(found: Audit, unavailable: Mapping[str, str], use: ProcessUse) -> node_pb.AuditResponse:
    """Write an audit."""
    return node_pb.AuditResponse(
        findings=[
            node_pb.AuditFinding(
                category=f.category,
                id=f.id,
                problem=_PROBLEMS[f.problem],
                pod_uid=f.pod_uid,
                message=f.message,
            )
            for f in found.findings
        ],
        categories=[
            node_pb.AuditCategory(name=name, found_count=count)
            for name, count in sorted(found.counts.items())
        ],
        unavailable=unavailable,
        process=node_pb.ProcessUse(
            service="kubelet",
            open_file_count=use.open_files,
            thread_count=use.threads,
            task_count=use.tasks,
            resident_bytes=use.resident_bytes,
        ),
    )


def explanation_message(pod: Pod, explanation: Explanation, now: datetime) -> pb.ExplainResponse:
    """Convert an explanation."""
    message = pb.ExplainResponse(
        namespace=pod.namespace,
        pod_name=pod.name,
        pod_uid=pod.uid,
        verdict=_VERDICTS[explanation.verdict],
        message=explanation.message,
        causes=[_cause(cause) for cause in explanation.causes],
        trace_id=explanation.trace_id,
    )
    set_time(message.since_time, explanation.since)
    set_time(message.time, now)
    return message


def _cause(cause: Cause) -> pb.Cause:
    message = pb.Cause(
        scope=_SCOPES[cause.scope],
        container=cause.container,
        reason=cause.reason,
        message=cause.message,
        next_step=cause.next_step,
        next_attempt_seconds=cause.next_seconds,
        evidence=[event_message(event) for event in cause.evidence],
    )
    set_time(message.since_time, cause.since)
    return message
