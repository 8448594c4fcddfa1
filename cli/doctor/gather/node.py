"""Ask the node's services, and read its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from cli import VERSION
from cli.doctor.facts import NodeFacts, ServiceFacts, Settings
from cli.doctor.gather import host
from cli.node import Node, find

_SERVICES = ("kubelet", "proxy", "cadvisor")
_LIMIT_SECONDS = 3.0


def gather(settings: Settings, environ: Mapping[str, str]) -> NodeFacts:
    """Look at the node."""
    node = Node(dict(environ))
    try:
        services = tuple(_service(node, name, dict(environ)) for name in _SERVICES)
        conditions, refused = _told(node) if services[0].answers else ((), None)
    finally:
        node.close()
    state, engine = settings.state_directory, host.socket_path(settings.docker_host)
    seen = host.file(engine) if engine else None
    owner = host.number(state / "kubelet.lock")
    return NodeFacts(
        settings=settings,
        version=VERSION,
        services=services,
        engine_group=seen.group if seen else "",
        conditions=conditions,
        refused_manifests=refused,
        state=host.file(state),
        state_space=host.space(state),
        state_propagation=propagation(host.text("/proc/self/mountinfo") or "", state),
        token=host.file(state / "node-token"),
        lock_owner=owner,
        lock_owner_alive=owner is not None and holds(host.text("/proc/locks") or "", state / "kubelet.lock"),
    )


def _service(node: Node, name: str, environ: dict[str, str]) -> ServiceFacts:
    from tripod.trace.v1 import trace_service_pb2 as pb

    address = find(name, environ).address
    path = host.socket_path(address)
    usual = Path(environ.get("TRIPOD_RUN_DIRECTORY") or "/run/tripod") / f"{name}.sock"
    seen = host.file(path or usual)
    if path is not None and seen is not None and not os.access(path, os.R_OK | os.W_OK):
        return ServiceFacts(name, seen, denied=True)
    try:
        answer = node.traces(name).ListTraces(pb.ListTracesRequest(limit=1), timeout=_LIMIT_SECONDS)
    except grpc.RpcError as error:
        return ServiceFacts(name, seen, error=_words(error, address, path))
    return ServiceFacts(name, seen, answers=True, version=answer.service_version)


def _words(error: Any, address: str, path: Path | None) -> str:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"nothing listens at {path or address}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {_LIMIT_SECONDS:.0f} s at {path or address}"
    return str(error.details() or error.code())


def _told(node: Node) -> tuple[tuple[tuple[str, bool, str], ...], Mapping[str, str] | None]:
    """Return the node's conditions and the refused manifests, as the kubelet tells them."""
    from tripod.kubelet.v1 import node_service_pb2 as pb
    from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

    try:
        answer = node.nodes().GetNode(pb.GetNodeRequest(), timeout=_LIMIT_SECONDS)
    except grpc.RpcError as error:
        return (("Ready", False, f"the kubelet does not tell: {error.details()}"),), None
    holds_ = pod_pb.CONDITION_STATUS_TRUE
    conditions = tuple((c.type, c.status == holds_, c.message) for c in answer.node.conditions)
    return conditions, dict(answer.refused_manifests) if answer.manifests_known else None


def propagation(table: str, path: Path) -> str:
    """Read /proc/self/mountinfo: is the mount that holds `path` shared, a slave or private?"""
    best, found = "", ""
    for line in table.splitlines():
        fields = line.split()
        point = fields[4] if len(fields) > 6 else ""
        if (
            point
            and (point == "/" or path == Path(point) or Path(point) in path.parents)
            and len(point) >= len(best)
        ):
            tags = " ".join(fields[6 : fields.index("-")]) if "-" in fields else ""
            best = point
            found = "shared" if "shared:" in tags else "a slave" if "master:" in tags else "private"
    return f"{found} ({best})" if found else ""


def holds(locks: str, path: Path) -> bool:
    """Read /proc/locks: does a process hold the lock on this file? Nothing is locked to find out."""
    try:
        inode = path.stat().st_ino
    except OSError:
        return False
    rows = [line.split() for line in locks.splitlines()]
    return any(len(row) > 5 and row[1] == "FLOCK" and row[5].endswith(f":{inode}") for row in rows)
