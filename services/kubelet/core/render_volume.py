"""Volumes, their mounts and sources of variables as Kubernetes JSON. Pure."""

from __future__ import annotations

from typing import Any

from services.kubelet.core import quantity
from services.kubelet.core.brought import (
    DownwardFile,
    DownwardFiles,
    EnvFrom,
    FieldRef,
    FileSource,
    ImageSource,
    Item,
    KeyRef,
    ObjectFiles,
    Origin,
    Projected,
    ResourceRef,
    TokenFile,
)
from services.kubelet.core.model import EmptyDir, EnvVar, HostPath, Volume, VolumeMount

Json = dict[str, Any]
_REFS = {Origin.CONFIG_MAP: "configMap", Origin.SECRET: "secret"}


def variable(value: EnvVar) -> Json:
    """Write a variable."""
    match value.source:
        case None:
            return {"name": value.name, "value": value.value}
        case KeyRef() as ref:
            inner = {"name": ref.name, "key": ref.key, **_optional(optional=ref.optional)}
            return {"name": value.name, "valueFrom": {f"{_REFS[ref.origin]}KeyRef": inner}}
        case FieldRef() | ResourceRef() as ref:
            return {"name": value.name, "valueFrom": _of_pod(ref)}


def env_from(value: EnvFrom) -> Json:
    """Write a source of many variables."""
    ref = {"name": value.name, **_optional(optional=value.optional)}
    prefix = {"prefix": value.prefix} if value.prefix else {}
    return {**prefix, f"{_REFS[value.origin]}Ref": ref}


def _of_pod(ref: FieldRef | ResourceRef) -> Json:
    if isinstance(ref, FieldRef):
        return {"fieldRef": {"apiVersion": ref.api_version, "fieldPath": ref.path}}
    made = {"containerName": ref.container, "resource": ref.resource, "divisor": ref.divisor}
    return {"resourceFieldRef": {key: text for key, text in made.items() if text}}


def _optional(*, optional: bool) -> Json:
    return {"optional": True} if optional else {}


def mount(value: VolumeMount) -> Json:
    """Write a mount; what is as it is by default is left out."""
    made: Json = {"name": value.name, "mountPath": value.mount_path}
    if value.read_only:
        made["readOnly"] = True
    if value.sub_path:
        made["subPathExpr" if value.sub_path_is_expression else "subPath"] = value.sub_path
    if value.propagation != "None":
        made["mountPropagation"] = value.propagation
    if value.recursive_read_only != "Disabled":
        made["recursiveReadOnly"] = value.recursive_read_only
    return made


def volume(value: Volume) -> Json:
    """Write a volume."""
    match value.source:
        case EmptyDir() as source:
            made: Json = {"medium": "Memory"} if source.memory else {}
            if source.size_limit_bytes is not None:
                made["sizeLimit"] = quantity.format_bytes(source.size_limit_bytes)
            return {"name": value.name, "emptyDir": made}
        case HostPath() as source:
            kind = {"type": source.type} if source.type else {}
            return {"name": value.name, "hostPath": {"path": source.path, **kind}}
        case ImageSource() as source:
            made = {"reference": source.reference, "pullPolicy": source.pull_policy}
            return {"name": value.name, "image": made}
        case Projected() as source:
            return {"name": value.name, source.plugin: _projected(source)}


def _projected(value: Projected) -> Json:
    mode = {"defaultMode": value.default_mode}
    if value.plugin == "projected":
        return {"sources": [_source(source) for source in value.sources], **mode}
    (inner,) = _source(value.sources[0]).values()
    if value.plugin == "secret":
        inner["secretName"] = inner.pop("name")
    return {**inner, **mode}


def _source(value: FileSource) -> Json:
    match value:
        case ObjectFiles():
            items = [_item(item) for item in value.items]
            inner = {"name": value.name, **({"items": items} if items else {})}
            return {_REFS[value.origin]: {**inner, **_optional(optional=value.optional)}}
        case DownwardFiles():
            return {"downwardAPI": {"items": [_downward(item) for item in value.items]}}
        case TokenFile():
            audience = {"audience": value.audience} if value.audience else {}
            rest = {"expirationSeconds": value.expiration_seconds, "path": value.path}
            return {"serviceAccountToken": {**audience, **rest}}


def _item(value: Item) -> Json:
    return {"key": value.key, "path": value.path, **_mode(value.mode)}


def _downward(value: DownwardFile) -> Json:
    return {"path": value.path, **_of_pod(value.source), **_mode(value.mode)}


def _mode(mode: int | None) -> Json:
    return {} if mode is None else {"mode": mode}
