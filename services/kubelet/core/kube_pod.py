"""A pod as a Kubernetes API server has it. Pure.

The API gives names, times and defaults; what is left to check is whether this node can honour
the spec. A pod with a field that it cannot honour is still read: its faults say which.

Source: Kubernetes API reference, `ObjectMeta` and `Pod` v1; the kubelet's `config/apiserver.go`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from services.common.errors import FieldViolation
from services.common.kuberequest import Json
from services.kubelet.core.fields import Faults
from services.kubelet.core.manifest_pod import read_pod_spec
from services.kubelet.core.model import Pod, PodUid
from services.kubelet.core.rules import CLUSTER

MIRROR = "kubernetes.io/config.mirror"
CONFIG_SOURCE = "kubernetes.io/config.source"
CONFIG_HASH = "kubernetes.io/config.hash"
UNSUPPORTED = "UnsupportedField"
_ENDED = ("Succeeded", "Failed")
# The pod's folder of logs is called NAMESPACE_NAME_UID, and NAME_MAX is 255.
_NAMES_LIMIT = 255 - len("__") - 36
_TOLD_FAULTS = 10


@dataclass(frozen=True, slots=True)
class ClusterPod:
    """One pod of the API. `faults` are the fields that this node cannot honour; `pod` is without them.

    `status` is what the API has, `body` the object without status and managed fields, as it is kept.
    """

    uid: PodUid
    namespace: str
    name: str
    revision: int
    generation: int
    pod: Pod
    faults: tuple[FieldViolation, ...] = ()
    deletion_time: datetime | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    status: Json = field(default_factory=dict, repr=False)
    body: Json = field(default_factory=dict, repr=False)

    @property
    def supported(self) -> bool:
        """Whether this node can honour its spec."""
        return not self.faults

    @property
    def ended(self) -> bool:
        """Whether the API says that it has ended for good."""
        return self.status.get("phase") in _ENDED

    @property
    def mirror(self) -> str:
        """The UID of the static pod that this one shows; "" for any other pod."""
        return self.annotations.get(MIRROR, "")

    def unsupported(self) -> str:
        """Say for its status which fields this node cannot honour."""
        told = [f"{fault.field}: {fault.description}" for fault in self.faults[:_TOLD_FAULTS]]
        rest = len(self.faults) - len(told)
        more = f"; and {rest} more" if rest > 0 else ""
        return f"Pod was rejected: this node does not support {'; '.join(told)}{more}"


def read(value: Json) -> ClusterPod:
    """Read a pod of the API. Raises `ValueError` for what is no object of the API."""
    meta = value.get("metadata")
    if not isinstance(meta, dict) or not all(meta.get(name) for name in ("name", "namespace", "uid")):
        raise ValueError("a pod needs a name, a namespace and a UID")
    faults = Faults()
    spec = read_pod_spec(value.get("spec"), faults, CLUSTER)
    if len(meta["name"]) + len(meta["namespace"]) > _NAMES_LIMIT:
        faults.add("metadata.name", f"with its namespace has more than {_NAMES_LIMIT} characters")
    status = value.get("status") or {}
    generation, revision = int(meta.get("generation") or 0), _number(meta.get("resourceVersion"))
    deletion = moment(meta.get("deletionTimestamp"))
    annotations = MappingProxyType(dict(meta.get("annotations") or {}))
    pod = Pod(
        uid=PodUid(meta["uid"]),
        namespace=meta["namespace"],
        name=meta["name"],
        spec=spec,
        labels=MappingProxyType(dict(meta.get("labels") or {})),
        annotations=annotations,
        creation_time=moment(meta.get("creationTimestamp")),
        deletion_time=deletion,
        deletion_grace_seconds=meta.get("deletionGracePeriodSeconds") if deletion else None,
        revision=revision,
        generation=generation,
        conditions_met=_met(status, value.get("spec") or {}),
        failure=_failure(status),
        start_time=moment(status.get("startTime")),
    )
    return ClusterPod(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        revision=revision,
        generation=generation,
        pod=pod,
        faults=tuple(faults.found),
        deletion_time=deletion,
        annotations=annotations,
        status=status,
        body=_body(value, meta),
    )


def moment(text: Any) -> datetime | None:
    """Read a time of the API; None for none."""
    return datetime.fromisoformat(text) if text else None


def _number(revision: Any) -> int:
    text = str(revision or "")
    return int(text) if text.isdecimal() else 0


def _met(status: Json, spec: Json) -> frozenset[str]:
    """Return the readiness gates whose conditions hold."""
    gates = {gate.get("conditionType") for gate in spec.get("readinessGates") or ()}
    conditions = status.get("conditions") or ()
    return frozenset(c["type"] for c in conditions if c.get("type") in gates and c.get("status") == "True")


def _failure(status: Json) -> tuple[str, str] | None:
    if status.get("phase") != "Failed":
        return None
    return str(status.get("reason") or ""), str(status.get("message") or "")


def _body(value: Json, meta: Json) -> Json:
    kept = {name: given for name, given in meta.items() if name != "managedFields"}
    return {"metadata": kept, "spec": value.get("spec")}
