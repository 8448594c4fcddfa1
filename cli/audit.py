"""The leak ledger of a node, from the kubelet and the proxy."""

from __future__ import annotations

import json
import textwrap
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from cli import output
from cli.node import Node

DEADLINE_SECONDS = 30.0
_COLUMNS = 100


@dataclass(slots=True)
class Ledger:
    """What two services said. A finding is (service, category, id, problem, pod UID, message)."""

    findings: list[tuple[str, str, str, str, str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    processes: list[dict[str, Any]] = field(default_factory=list)


def take(node: Node) -> Ledger:
    """Ask both services once. One that does not answer is noted as unavailable."""
    from tripod.kubelet.v1 import node_service_pb2 as node_pb
    from tripod.proxy.v1 import proxy_service_pb2 as proxy_pb

    made = Ledger()
    _add(made, "kubelet", node.nodes().Audit(node_pb.AuditRequest(), timeout=DEADLINE_SECONDS))
    try:
        _add(made, "proxy", node.proxy().Audit(proxy_pb.AuditRequest(), timeout=DEADLINE_SECONDS))
    except grpc.RpcError as error:
        made.unavailable["proxy"] = _reason(error)
    return made


def _reason(error: Any) -> str:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return "it does not answer"
    return str(error.details() or error.code().name)


def _add(made: Ledger, service: str, answer: Any) -> None:
    from tripod.kubelet.v1 import node_service_pb2 as pb

    for finding in answer.findings:
        problem = pb.AuditProblem.Name(finding.problem).removeprefix("AUDIT_PROBLEM_").lower()
        made.findings.append(
            (service, finding.category, finding.id, problem, finding.pod_uid, finding.message)
        )
    made.counts |= {category.name: category.found_count for category in answer.categories}
    made.unavailable |= dict(answer.unavailable)
    use = answer.process
    made.processes.append(
        {
            "service": use.service,
            "open_files": use.open_file_count,
            "threads": use.thread_count,
            "tasks": use.task_count,
            "resident_bytes": use.resident_bytes,
        }
    )


def settled(node: Node, wait_seconds: float) -> Ledger:
    """Look once; where something differs, again after a while, and keep what both looks saw."""
    first = take(node)
    if not first.findings or wait_seconds <= 0:
        return first
    time.sleep(wait_seconds)
    second = take(node)
    seen = {finding[:4] for finding in first.findings}
    second.findings = [finding for finding in second.findings if finding[:4] in seen]
    return second


def as_json(ledger: Ledger) -> str:
    """Write it for programs."""
    names = ("service", "category", "id", "problem", "pod_uid", "message")
    return json.dumps(
        {
            "findings": [dict(zip(names, finding, strict=True)) for finding in ledger.findings],
            "counts": ledger.counts,
            "unavailable": ledger.unavailable,
            "processes": ledger.processes,
        },
        indent=2,
    )


def as_text(ledger: Ledger) -> str:
    """Write it for people."""
    looked = ", ".join(f"{name} {count}" for name, count in sorted(ledger.counts.items()))
    parts = ["\n".join(textwrap.wrap(f"Looked at: {looked or 'nothing'}", _COLUMNS, break_on_hyphens=False))]
    if ledger.findings:
        rows = [
            (problem, category, ident[:40], pod or "-", message)
            for _, category, ident, problem, pod, message in ledger.findings
        ]
        parts.append(output.table(["PROBLEM", "CATEGORY", "ID", "POD UID", "MESSAGE"], rows))
    elif not ledger.unavailable:
        parts.append("Nothing leaked, nothing is missing.")
    parts += [f"Could not look at {name}: {why}" for name, why in sorted(ledger.unavailable.items())]
    rows = [
        (
            use["service"],
            str(use["open_files"]),
            str(use["threads"]),
            str(use["tasks"]),
            f"{use['resident_bytes'] >> 20} MiB",
        )
        for use in ledger.processes
    ]
    parts.append(output.table(["SERVICE", "FILES", "THREADS", "TASKS", "MEMORY"], rows))
    return "\n\n".join(parts)
