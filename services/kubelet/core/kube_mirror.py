"""Mirror pods: what shows the static pods of a node at the API server. Pure.

A static pod is called NAME-NODE in a cluster. Its mirror says by annotations which one it shows,
belongs to the Node, and names nothing else at the API, since the API refuses one that does.

Source: the kubelet's `config/common.go`, `pod/mirror_client.go`; the NodeRestriction admission plugin.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from services.kubelet.core import render
from services.kubelet.core.kube_pod import CONFIG_HASH, CONFIG_SOURCE, MIRROR, ClusterPod
from services.kubelet.core.model import Pod

CONFIG_SEEN = "kubernetes.io/config.seen"
_EVERYWHERE = {"operator": "Exists", "effect": "NoExecute"}


def named(pod: Pod, node: str) -> Pod:
    """Return a static pod as it is called in a cluster."""
    annotations = {**pod.annotations, CONFIG_HASH: _hash(pod), CONFIG_SOURCE: "file"}
    return replace(pod, name=f"{pod.name}-{node}", annotations=MappingProxyType(annotations))


def _hash(pod: Pod) -> str:
    """Return what differs when the file does: another spec is another pod, whose UID is another."""
    told = [pod.uid, sorted(pod.labels.items()), sorted(pod.annotations.items())]
    return sha256(json.dumps(told).encode()).hexdigest()[:32]


def mirror(pod: Pod, *, node: str, node_uid: str, seen: datetime) -> dict[str, Any]:
    """Write the mirror of a static pod that is `named` already."""
    body = render.pod(pod)
    told = {MIRROR: pod.uid, CONFIG_SEEN: seen.isoformat()}
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": True}
    body["metadata"] = {
        "name": pod.name,
        "namespace": pod.namespace,
        "labels": dict(pod.labels),
        "annotations": {**pod.annotations, **told},
        "ownerReferences": [owner],
    }
    spec = {**body["spec"], "nodeName": node}
    spec["tolerations"] = [*spec.get("tolerations", ()), _EVERYWHERE]
    body["spec"] = spec
    return body


def shows(present: ClusterPod, pod: Pod) -> bool:
    """Tell whether a mirror shows a static pod as it is now."""
    right = (present.namespace, present.name) == (pod.namespace, pod.name)
    same = present.annotations.get(CONFIG_HASH) == pod.annotations.get(CONFIG_HASH)
    return right and same and present.mirror == pod.uid and present.deletion_time is None
