"""The Node object that a kubelet registers and keeps, its status, and its lease. Pure.

Labels, taints and the rest are set when the Node is made; later only our own labels are kept
right. Conditions of others stay. A status is told when something changed, else each five minutes.

Source: the kubelet's `kubelet_node_status.go`, `nodestatus/setters.go`; the lease controller.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.common.kuberequest import Json
from services.kubelet.core.kube_resources import LEASE_NAMESPACE
from services.kubelet.core.node import NodeCondition, NodeStatus, RuntimeHandler, standard_labels
from services.kubelet.core.render import rfc3339

LEASE_SECONDS = 40
REPORT_SECONDS = 300.0
CONDITIONS = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# Told once the runtime has told them.
_LATER = ("images", "runtimeHandlers", "features")
_TAINT = re.compile(r"([^=:]+)(?:=([^:]*))?:(\w+)")
# Our names for what `nodeInfo` says.
_INFO = {
    "kubelet_version": "kubeletVersion",
    "container_runtime_version": "containerRuntimeVersion",
    "kernel_version": "kernelVersion",
    "os_image": "osImage",
    "operating_system": "operatingSystem",
    "architecture": "architecture",
    "machine_id": "machineID",
    "boot_id": "bootID",
}


@dataclass(frozen=True, slots=True)
class Registration:
    """What a Node is made with. `features` are what this node declares that it can do.

    `version` is the kubelet's, as clusters compare it.
    """

    name: str
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...] = ()
    port: int = 10250
    features: tuple[str, ...] = ()
    version: str = ""


def labels(name: str, architecture: str) -> dict[str, str]:
    """Return the labels that every node of a cluster has; older clusters ask for the beta ones."""
    plain = standard_labels(name, architecture)
    return plain | {f"beta.{key}": value for key, value in plain.items() if not key.endswith("hostname")}


def read_labels(texts: Sequence[str]) -> dict[str, str]:
    """Read `KEY=VALUE` settings. Raises `ValueError`."""
    pairs = [text.partition("=") for text in texts]
    if bad := [key for key, equals, _ in pairs if not key or not equals]:
        raise ValueError(f"node_labels: {bad[0]!r} is not like KEY=VALUE")
    return {key: value for key, _, value in pairs}


def read_taints(texts: Sequence[str]) -> tuple[Mapping[str, str], ...]:
    """Read `KEY[=VALUE]:EFFECT` settings. Raises `ValueError`."""
    return tuple(_taint(text) for text in texts)


def _taint(text: str) -> Mapping[str, str]:
    found = _TAINT.fullmatch(text)
    if found is None or found[3] not in _EFFECTS:
        raise ValueError(f"register_with_taints: {text!r} is not like KEY=VALUE:{'|'.join(_EFFECTS)}")
    return {"key": found[1], **({"value": found[2]} if found[2] else {}), "effect": found[3]}


def node(wanted: Registration) -> dict[str, Any]:
    """Write the Node as it is made."""
    spec = {"taints": [dict(taint) for taint in wanted.taints]} if wanted.taints else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": wanted.name,
            "labels": dict(wanted.labels),
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": spec,
    }


def label_patch(present: Json, wanted: Registration) -> dict[str, Any] | None:
    """Return the patch that brings our labels to a Node that is there; None when they are."""
    there = present["metadata"].get("labels") or {}
    missing = {key: value for key, value in wanted.labels.items() if there.get(key) != value}
    return {"metadata": {"labels": missing}} if missing else None


def status(value: NodeStatus, wanted: Registration, before: Json, now: datetime) -> dict[str, Any]:
    """Write the status for the API, which has `before`. A condition keeps its time while it holds on."""
    known = {item["type"]: item for item in before.get("conditions") or ()}
    ours = [c for c in value.conditions if c.type in CONDITIONS]
    info = {theirs: value.info.get(name, "") for name, theirs in _INFO.items()}
    info["kubeletVersion"] = wanted.version or info["kubeletVersion"]
    made: dict[str, Any] = {
        "addresses": [{"type": kind, "address": address} for kind, address in value.addresses],
        "capacity": dict(value.capacity),
        "allocatable": dict(value.allocatable),
        "conditions": [_condition(c, known.get(c.type), now) for c in ours],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": wanted.port}},
        "nodeInfo": {**info, "systemUUID": value.system_uuid, "kubeProxyVersion": ""},
    }
    if value.swap_bytes:
        made["nodeInfo"]["swap"] = {"capacity": value.swap_bytes}
    if wanted.features:
        made["declaredFeatures"] = list(wanted.features)
    if value.runtime is not None:
        made["runtimeHandlers"] = [_handler(handler) for handler in value.runtime.handlers]
        made["features"] = {"supplementalGroupsPolicy": value.runtime.strict_groups}
    if value.images is not None:
        made["images"] = [{"names": list(i.names), "sizeBytes": i.size_bytes} for i in value.images]
    return made


def _handler(value: RuntimeHandler) -> dict[str, Any]:
    # Whatever the runtime can, no pod of ours has a user namespace of its own.
    features = {"recursiveReadOnlyMounts": value.recursive_read_only, "userNamespaces": False}
    return {"name": value.name, "features": features}


def _condition(value: NodeCondition, before: Json | None, now: datetime) -> dict[str, Any]:
    holds = "True" if value.holds else "False"
    same = before is not None and before.get("status") == holds and before.get("lastTransitionTime")
    return {
        "type": value.type,
        "status": holds,
        "reason": value.reason,
        "message": value.message,
        "lastHeartbeatTime": rfc3339(now),
        "lastTransitionTime": same or rfc3339(value.since or now),
    }


def changed(before: Json, after: Json) -> bool:
    """Tell whether a status says more than another one than that time has passed."""
    # What is not known yet says nothing.
    known = {name for name in _LATER if name in after}
    return _without_times(before, known) != _without_times(after, known)


def _images(value: Json) -> list[tuple[Sequence[str], int]]:
    # The API answers without what is empty.
    return [(item.get("names") or [], item.get("sizeBytes", 0)) for item in value.get("images") or ()]


def _without_times(value: Json, known: Collection[str]) -> dict[str, Any]:
    conditions = {
        c["type"]: (c.get("status"), c.get("reason"))
        for c in value.get("conditions") or ()
        if c["type"] in CONDITIONS
    }
    names = ("addresses", "capacity", "allocatable", "daemonEndpoints", "declaredFeatures")
    kept = {name: value.get(name) for name in names}
    info = {name: text for name, text in (value.get("nodeInfo") or {}).items() if text}
    later: dict[str, Any] = {name: value.get(name) or [] for name in known}
    if "images" in known:
        later["images"] = _images(value)
    return {**kept, **later, "nodeInfo": info, "conditions": conditions}


def status_patch(uid: str, after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the strategic merge patch of a status: our conditions, and all else as it is now."""
    addresses = [{"$patch": "replace"}, *after["addresses"]]
    return {"metadata": {"uid": uid}, "status": {**after, "addresses": addresses}}


def lease(name: str, node_uid: str, now: datetime) -> dict[str, Any]:
    """Write the lease of a node, which goes with it."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
        "spec": _lease_spec(name, now),
    }


def renewal(name: str, now: datetime) -> dict[str, Any]:
    """Return the patch that renews a lease."""
    return {"spec": _lease_spec(name, now)}


def _lease_spec(name: str, now: datetime) -> dict[str, Any]:
    renewed = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed}
