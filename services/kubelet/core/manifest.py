"""Documents to objects, validated and with defaults. Pure.

Source: Kubernetes API reference, `Pod` v1 and `Service` v1, and the validation of
kube-apiserver. Standalone, this is the only validation there is: what passes here
is stored. UIDs, addresses and times are given later, by the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import FieldViolation
from services.kubelet.core import documents
from services.kubelet.core.documents import DocumentError
from services.kubelet.core.fields import DNS_LABEL, DNS_SUBDOMAIN, Faults, Fields, label_value_fault
from services.kubelet.core.manifest_config import (
    CONFIG_MAP_FIELDS,
    SECRET_FIELDS,
    SERVICE_ACCOUNT_FIELDS,
    ConfigMapDraft,
    NamespaceDraft,
    SecretDraft,
    ServiceAccountDraft,
    read_config_map,
    read_namespace,
    read_secret,
    read_service_account,
)
from services.kubelet.core.manifest_pod import read_pod_spec
from services.kubelet.core.manifest_service import ServiceDraft, read_service_spec
from services.kubelet.core.model import ObjectKey, PodSpec
from services.kubelet.core.rules import STANDALONE, Rules

DraftSpec = PodSpec | ServiceDraft | ConfigMapDraft | SecretDraft | ServiceAccountDraft | NamespaceDraft
# Of each kind: its fields beside apiVersion, kind, metadata and status, and what reads them.
_READERS: Mapping[str, tuple[tuple[str, ...], Callable[[Fields, Rules], DraftSpec]]] = {
    "Pod": (("spec",), lambda top, rules: read_pod_spec(top.raw("spec"), top.faults, rules)),
    "Service": (("spec",), lambda top, _: read_service_spec(top.raw("spec"), top.faults)),
    "ConfigMap": (CONFIG_MAP_FIELDS, lambda top, _: read_config_map(top)),
    "Secret": (SECRET_FIELDS, lambda top, _: read_secret(top)),
    "ServiceAccount": (SERVICE_ACCOUNT_FIELDS, lambda top, _: read_service_account(top)),
    "Namespace": (("spec",), lambda top, _: read_namespace(top)),
}
KINDS = tuple(_READERS)
NAMESPACED = frozenset(KINDS) - {"Namespace"}
# What the API fills in, and which changes nothing here.
_LATER: Mapping[str, tuple[Any, ...]] = {"status": ({}, {"phase": "Active"})}
_LATER_OF: Mapping[str, Mapping[str, tuple[Any, ...]]] = {"ServiceAccount": {"secrets": ([],)}}
_ANNOTATIONS_LIMIT_BYTES = 256 << 10
_NAMES_LIMIT = 255 - len("__") - 36


@dataclass(frozen=True, slots=True)
class Draft:
    """One object as a manifest asks for it."""

    key: ObjectKey
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: DraftSpec
    path: str


def read(data: bytes, rules: Rules = STANDALONE) -> tuple[list[Draft], list[FieldViolation]]:
    """Read a manifest: the objects, and every fault of every document.

    A path begins with the object, such as `Pod web-1: spec.containers[0].image`.
    """
    try:
        found = documents.read(data)
    except DocumentError as error:
        return [], [FieldViolation("manifest", str(error))]
    if not found:
        return [], [FieldViolation("manifest", "holds no object")]
    drafts: list[Draft] = []
    violations: list[FieldViolation] = []
    for document in found:
        draft, faults = _read_one(document.value, document.index, rules)
        violations += faults
        drafts += [draft] if draft else []
    return drafts, violations + _doubles(drafts)


def _doubles(drafts: list[Draft]) -> list[FieldViolation]:
    keys = [draft.key for draft in drafts]
    again = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else set()
    return [
        FieldViolation(str(key), "stands more than once in the manifest") for key in sorted(again, key=str)
    ]


def _read_one(value: Any, index: int, rules: Rules) -> tuple[Draft | None, list[FieldViolation]]:
    faults = Faults()
    kind = value.get("kind") if isinstance(value, dict) else None
    own, reader = _READERS.get(kind, (("spec",), None)) if isinstance(kind, str) else (("spec",), None)
    known = ("apiVersion", "kind", "metadata", *own)
    top = Fields(value, "", faults, known=known, later={**_LATER, **_LATER_OF.get(str(kind), {})})
    kind = top.text("kind", required=True)
    if kind and kind not in KINDS:
        top.fault("kind", f"{kind!r} is not known; Tripod takes {kinds_told()}")
    elif top.text("apiVersion", required=True) not in ("v1", ""):
        top.fault("apiVersion", f"{top.raw('apiVersion')!r} is not v1")
    name, namespace, labels, annotations = _metadata(top, kind)
    spec = reader(top, rules) if reader is not None else None
    where = f"{kind or 'document'} {name or f'#{index + 1}'}"
    found = [
        FieldViolation(f"{where}: {fault.field}" if fault.field else where, fault.description)
        for fault in faults.found
    ]
    if found or spec is None:
        return None, found
    return Draft(ObjectKey(kind, namespace, name), labels, annotations, spec, where), []


def _metadata(top: Fields, kind: str) -> tuple[str, str, dict[str, str], dict[str, str]]:
    meta = Fields(
        top.raw("metadata"),
        "metadata",
        top.faults,
        known=("name", "namespace", "labels", "annotations"),
        later={
            "generateName": ("",),
            "finalizers": ([],),
            "ownerReferences": ([],),
            "managedFields": ([],),
            "uid": ("",),
            "resourceVersion": ("",),
            "generation": (0,),
            "creationTimestamp": (),
            "deletionTimestamp": (),
            "deletionGracePeriodSeconds": (),
            "selfLink": ("",),
        },
    )
    label = kind in ("Service", "Namespace")
    what = "a DNS name of lower-case letters, digits and '-'" + ("" if label else " or '.'")
    name = meta.text("name", required=True, form=DNS_LABEL if label else DNS_SUBDOMAIN, what=what)
    namespace = _namespace(meta, kind)
    if kind == "Pod" and len(name) + len(namespace) > _NAMES_LIMIT:
        # The pod's folder of logs is called NAMESPACE_NAME_UID, and NAME_MAX is 255.
        meta.fault("name", f"with its namespace has more than {_NAMES_LIMIT} characters")
    labels = meta.mapping("labels", values=label_value_fault)
    annotations = meta.mapping("annotations")
    if sum(len(key) + len(value) for key, value in annotations.items()) > _ANNOTATIONS_LIMIT_BYTES:
        meta.fault("annotations", f"hold more than {_ANNOTATIONS_LIMIT_BYTES} bytes")
    return name, namespace, labels, annotations


def _namespace(meta: Fields, kind: str) -> str:
    if kind == "Namespace":
        if meta.raw("namespace"):
            meta.fault("namespace", "must not be given: a Namespace lies in none")
        return ""
    return meta.text("namespace", "default", form=DNS_LABEL, what="a DNS label") or "default"


def kinds_told() -> str:
    """List the kinds for a message."""
    return f"{', '.join(KINDS[:-1])} and {KINDS[-1]}"
