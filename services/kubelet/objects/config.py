"""Objects that pods name: from a draft to a value, to a row's body, and by their rules of change. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypedDict

from services.common.errors import FieldViolation
from services.kubelet.core import render_config
from services.kubelet.core.manifest import Draft
from services.kubelet.core.manifest_config import (
    ConfigMapDraft,
    NamespaceDraft,
    SecretDraft,
    ServiceAccountDraft,
    change_faults,
)
from services.kubelet.core.model import ConfigMap, Namespace, Secret, ServiceAccount

ConfigDraft = ConfigMapDraft | SecretDraft | ServiceAccountDraft | NamespaceDraft
ConfigObject = ConfigMap | Secret | ServiceAccount | Namespace
# The account that every namespace has; and the namespace that always is.
DEFAULT = "default"


class _Common(TypedDict):
    uid: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    creation_time: datetime | None
    revision: int


def complete(
    draft: Draft, spec: ConfigDraft, before: object, now: datetime
) -> tuple[ConfigObject | None, list[FieldViolation]]:
    """Return the object that a draft makes of the one before, or what is wrong with the change."""
    known = before if isinstance(before, ConfigMap | Secret | ServiceAccount | Namespace) else None
    value = _made(draft, spec, known, now)
    faults: list[tuple[str, str]] = []
    if isinstance(known, ConfigMap | Secret) and isinstance(value, ConfigMap | Secret):
        faults = change_faults(known, value)
    told = [FieldViolation(f"{draft.path}: {field}", what) for field, what in faults]
    return (None if told else value), told


def _made(draft: Draft, spec: ConfigDraft, before: ConfigObject | None, now: datetime) -> ConfigObject:
    common = _Common(
        uid=before.uid if before else str(uuid.uuid4()),
        name=draft.key.name,
        labels=MappingProxyType(draft.labels),
        annotations=MappingProxyType(draft.annotations),
        creation_time=before.creation_time if before else now,
        revision=before.revision if before else 0,
    )
    place = draft.key.namespace
    match spec:
        case ConfigMapDraft():
            data, binary = MappingProxyType(spec.data), MappingProxyType(spec.binary_data)
            return ConfigMap(
                namespace=place, data=data, binary_data=binary, immutable=spec.immutable, **common
            )
        case SecretDraft():
            secret_data = MappingProxyType(spec.data)
            return Secret(
                namespace=place, data=secret_data, type=spec.type, immutable=spec.immutable, **common
            )
        case ServiceAccountDraft():
            return ServiceAccount(
                namespace=place,
                image_pull_secrets=spec.image_pull_secrets,
                automount_token=spec.automount_token,
                **common,
            )
        case NamespaceDraft():
            return Namespace(**common)


def body(value: ConfigObject) -> dict[str, Any]:
    """Write an object as the store keeps it: a Secret with its values."""
    match value:
        case ConfigMap():
            return render_config.config_map(value)
        case Secret():
            return render_config.secret(value)
        case ServiceAccount():
            return render_config.service_account(value)
        case Namespace():
            return render_config.namespace(value)


def shown(value: ConfigObject) -> dict[str, Any]:
    """Write an object for whoever asks: a Secret without its values."""
    return render_config.redacted(value) if isinstance(value, Secret) else body(value)
