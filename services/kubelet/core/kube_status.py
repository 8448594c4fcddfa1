"""A pod's status for a Kubernetes API server, and the patch that brings it there. Pure.

- Only what differs is sent, with the UID as a precondition: another pod of the name is never meant.
- Conditions of others stay; a condition keeps its time while it does not change.
- A pod that has ended stays so: a phase never changes from Succeeded or Failed.

Source: the kubelet's `status/status_manager.go` and `types/pod_status.go`; strategic merge patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.common.kuberequest import Json
from services.kubelet.core.render import rfc3339
from services.kubelet.core.status import PodStatus, to_kubernetes

OWNED = (
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
    "PodScheduled",
)
_ENDED = ("Succeeded", "Failed")
# Lists that strategic merge patches merge by a key, and that we mean to replace.
_MERGED = ("podIPs", "hostIPs")
_ADDRESSES = ("podIP", "podIPs")
# What goes from the API when we no longer say it.
_CLEARED = ("reason", "message", *_ADDRESSES)


def render(status: PodStatus, before: Json) -> dict[str, Any]:
    """Write a status for the API, which has `before`."""
    made = to_kubernetes(status)
    if status.host_ip:
        made["hostIPs"] = [{"ip": status.host_ip}]
    if status.observed_generation:
        made["observedGeneration"] = status.observed_generation
    # The API's own: when it was first told, what it derived from the spec, and where an ended pod was.
    kept = ("startTime", "qosClass", *(() if status.pod_ips or not status.terminal else _ADDRESSES))
    made |= {name: before[name] for name in kept if before.get(name)}
    made["conditions"] = _conditions(made["conditions"], before, status.observed_generation)
    return made


def refusal(reason: str, message: str, before: Json, *, generation: int, now: datetime) -> dict[str, Any]:
    """Write the status of a pod that this node does not run."""
    made: dict[str, Any] = {"phase": "Failed", "reason": reason, "message": message}
    made["startTime"] = before.get("startTime") or rfc3339(now)
    return {**made, "observedGeneration": generation} if generation else made


def _conditions(ours: Sequence[Json], before: Json, generation: int) -> list[dict[str, Any]]:
    known = {item["type"]: item for item in before.get("conditions") or ()}
    return [_condition(item, known.get(item["type"]), generation) for item in ours]


def _condition(condition: Json, before: Json | None, generation: int) -> dict[str, Any]:
    made = dict(condition)
    if before is not None and before.get("status") == made["status"] and before.get("lastTransitionTime"):
        made["lastTransitionTime"] = before["lastTransitionTime"]
    return {**made, "observedGeneration": generation} if generation else made


def patch(uid: str, before: Json, after: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the strategic merge patch from one status to another; None when nothing differs."""
    if before.get("phase") in _ENDED and after["phase"] != before["phase"]:
        return None
    changed: dict[str, Any] = {}
    for name, value in after.items():
        if name == "conditions":
            if differing := _differing(value, before):
                changed[name] = differing
        elif _said(before.get(name)) != _said(value):
            changed[name] = [{"$patch": "replace"}, *value] if name in _MERGED else value
    for name in _CLEARED:
        if before.get(name) and name not in after:
            changed[name] = None
    return {"metadata": {"uid": uid}, "status": changed} if changed else None


def _differing(conditions: Sequence[Json], before: Json) -> list[dict[str, Any]]:
    known = {item["type"]: item for item in before.get("conditions") or ()}
    found = []
    for item in conditions:
        old = _said(known.get(item["type"], {}))
        if old != _said(item):
            # What the old one says and the new one does not is taken back.
            found.append({**dict.fromkeys(old.keys() - item.keys()), **item})
    return found


def _said(value: Any) -> Any:
    """Return a value without what says nothing, which the API adds: null, empty text, empty objects."""
    if isinstance(value, Mapping):
        plain = {name: _said(inner) for name, inner in value.items()}
        return {name: inner for name, inner in plain.items() if inner not in (None, "", {}, [])}
    return [_said(inner) for inner in value] if isinstance(value, list | tuple) else value
