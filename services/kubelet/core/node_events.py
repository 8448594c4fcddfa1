"""What a node tells of itself as events: the reasons, types and words of the original. Pure.

Left out: `NodeAllocatableEnforced`, for we keep no group that all pods share, and
`InvalidDiskCapacity`, for we collect no images.

Source: the kubelet's `kubelet_node_status.go`, `nodestatus/setters.go`, `events/event.go`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.common.kuberequest import Json

# What is told of a condition that holds, and of one that does not.
_PRESSURES = {
    "MemoryPressure": ("NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
    "DiskPressure": ("NodeHasDiskPressure", "NodeHasNoDiskPressure"),
    "PIDPressure": ("NodeHasInsufficientPID", "NodeHasSufficientPID"),
}


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """Something that happened to the node."""

    reason: str
    message: str
    warning: bool = False


STARTING = NodeEvent("Starting", "Starting kubelet.")


def of_status(node: str, before: Json, after: Json, *, first: bool) -> Iterator[NodeEvent]:
    """Yield what a status that was told says anew. The `first` of a run tells of every pressure."""
    boot, known_boot = _boot(after), _boot(before)
    if boot and known_boot and boot != known_boot:
        yield NodeEvent("Rebooted", f"Node {node} has been rebooted, boot id: {boot}", warning=True)
    known, now = _conditions(before), _conditions(after)
    for kind, (holds, not_so) in _PRESSURES.items():
        if kind in now and (first or now[kind] != known.get(kind)):
            yield _is_now(node, holds if now[kind] == "True" else not_so)
    ready = now.get("Ready")
    if ready == "True" and known.get("Ready") != "True":
        yield _is_now(node, "NodeReady")
    elif ready == "False" and known.get("Ready", "False") != "False":
        yield _is_now(node, "NodeNotReady")


def of_scheduling(node: str, *, unschedulable: bool) -> NodeEvent:
    """Return what is told when somebody cordons the node, or takes that back."""
    return _is_now(node, "NodeNotSchedulable" if unschedulable else "NodeSchedulable")


def _is_now(node: str, reason: str) -> NodeEvent:
    return NodeEvent(reason, f"Node {node} status is now: {reason}")


def _conditions(status: Json) -> dict[str, Any]:
    return {c["type"]: c.get("status") for c in status.get("conditions") or ()}


def _boot(status: Json) -> str:
    return str((status.get("nodeInfo") or {}).get("bootID") or "")
