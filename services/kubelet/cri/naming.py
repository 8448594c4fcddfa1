"""Names and labels of sandboxes and containers at the engine. Pure.

Source: cri-dockerd's naming (`k8s_POD_...`), so that people and tools find what
they know. What the CRI needs back stands in one JSON label, since an image may
bring labels of its own; the plain labels are for people and other tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

OWNER_LABEL = "io.tripod.node"
KIND_LABEL = "io.tripod.kind"
RECORD_LABEL = "io.tripod.record"
MARK_LABEL = "io.tripod.mark"
DIGEST_LABEL = "io.tripod.digest"
SANDBOX_LABEL = "io.kubernetes.sandbox.id"
UID_LABEL = "io.kubernetes.pod.uid"
SANDBOX = "podsandbox"
CONTAINER = "container"
_NAME_LIMIT = 250


@dataclass(frozen=True, slots=True)
class Record:
    """What the engine keeps for us about a sandbox or container."""

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    attempt: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    sandbox_id: str = ""
    image: str = ""
    log_path: str = ""
    log_directory: str = ""
    host_network: bool = False
    shared_pid: bool = False
    ports: str = ""
    # Where the engine puts its cgroups; empty for the engine's own place.
    cgroup_parent: str = ""
    # Volumes that are images, by their path in the container; `imagevolumes` has the values.
    image_mounts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def name(record: Record, pod: Record) -> str:
    """Name a container of a pod, the sandbox itself included."""
    return sandbox_name(record) if record.kind == SANDBOX else container_name(record, pod)


def sandbox_name(record: Record) -> str:
    """Name a sandbox's container."""
    return _joined("POD", record.name, record.namespace, record.uid, str(record.attempt))


def container_name(record: Record, sandbox: Record) -> str:
    """Name a container."""
    return _joined(record.name, sandbox.name, sandbox.namespace, sandbox.uid, str(record.attempt))


def _joined(*parts: str) -> str:
    return "_".join(("k8s", *(_safe(part) for part in parts)))[:_NAME_LIMIT]


def _safe(part: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in part)


def labels(record: Record, owner: str, pod: Record) -> dict[str, str]:
    """Return the engine's labels: the caller's own, those that tools know, and our record."""
    return {
        **record.labels,
        "io.kubernetes.pod.name": pod.name,
        "io.kubernetes.pod.namespace": pod.namespace,
        UID_LABEL: pod.uid,
        "io.kubernetes.container.name": "POD" if record.kind == SANDBOX else record.name,
        SANDBOX_LABEL: record.sandbox_id,
        OWNER_LABEL: owner,
        KIND_LABEL: record.kind,
        RECORD_LABEL: encode(record),
    }


def encode(record: Record) -> str:
    """Write a record as JSON; empty parts are left out."""
    values = {name: getattr(record, name) for name in Record.__dataclass_fields__}
    kept = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items() if v}
    return json.dumps(kept, separators=(",", ":"), sort_keys=True)


def decode(engine_labels: Mapping[str, str], owner: str) -> Record | None:
    """Read the record back; None for what does not claim to be ours or is not whole.

    Whether the claim is true, `register` tells.
    """
    if engine_labels.get(OWNER_LABEL) != owner:
        return None
    try:
        record = Record(**json.loads(engine_labels[RECORD_LABEL]))
    except (KeyError, TypeError, ValueError):
        return None
    return record if record.kind in (SANDBOX, CONTAINER) else None
