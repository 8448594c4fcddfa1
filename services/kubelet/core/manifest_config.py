"""ConfigMap, Secret, ServiceAccount and Namespace: fields, rules and defaults. Pure.

Source: Kubernetes API reference and the validation of kube-apiserver. A fault about a
Secret, or about what may be one, never quotes a value.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from services.kubelet.core.fields import DNS_SUBDOMAIN, Fields
from services.kubelet.core.model import ConfigMap, Secret

# All keys and values of one object together.
LIMIT_BYTES = 1 << 20
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_OPAQUE = "Opaque"
_TOKEN_TYPE = "kubernetes.io/service-account-token"  # the name of a type
CONFIG_MAP_FIELDS = ("data", "binaryData", "immutable")
SECRET_FIELDS = ("data", "stringData", "type", "immutable")
SERVICE_ACCOUNT_FIELDS = ("imagePullSecrets", "automountServiceAccountToken")


@dataclass(frozen=True, slots=True)
class ConfigMapDraft:
    """A ConfigMap as a manifest asks for it."""

    data: dict[str, str]
    binary_data: dict[str, bytes]
    immutable: bool = False


@dataclass(frozen=True, slots=True)
class SecretDraft:
    """A Secret as a manifest asks for it: `stringData` is in `data`."""

    data: dict[str, bytes] = field(repr=False)
    type: str = _OPAQUE
    immutable: bool = False


@dataclass(frozen=True, slots=True)
class ServiceAccountDraft:
    """A ServiceAccount as a manifest asks for it."""

    image_pull_secrets: tuple[str, ...] = ()
    automount_token: bool | None = None


@dataclass(frozen=True, slots=True)
class NamespaceDraft:
    """A Namespace as a manifest asks for it."""


def read_config_map(top: Fields) -> ConfigMapDraft:
    """Read and check a ConfigMap."""
    data = _entries(top, "data", lambda value: value)
    binary = _entries(top, "binaryData", _decoded)
    for key in sorted(data.keys() & binary.keys()):
        top.fault(f"binaryData[{key}]", "stands in `data`, too")
    sizes = [len(value.encode()) for value in data.values()] + [len(value) for value in binary.values()]
    _check_size(top, sum(sizes))
    return ConfigMapDraft(data, binary, top.flag("immutable"))


def read_secret(top: Fields) -> SecretDraft:
    """Read and check a Secret; of a key in both, `stringData` wins, as in the API."""
    data = _entries(top, "data", _decoded)
    data |= _entries(top, "stringData", lambda value: value.encode())
    kind = top.text("type", _OPAQUE) or _OPAQUE
    _check_size(top, sum(map(len, data.values())))
    _check_type(top, kind, data)
    return SecretDraft(data, kind, top.flag("immutable"))


def read_service_account(top: Fields) -> ServiceAccountDraft:
    """Read and check a ServiceAccount."""
    automount = top.flag("automountServiceAccountToken") if top.has("automountServiceAccountToken") else None
    return ServiceAccountDraft(read_secret_names(top, "imagePullSecrets"), automount)


def read_namespace(top: Fields) -> NamespaceDraft:
    """Read and check a Namespace; the API fills in its finalizers."""
    if top.has("spec"):
        later: dict[str, tuple[Any, ...]] = {"finalizers": ([], ["kubernetes"])}
        Fields(top.raw("spec"), "spec", top.faults, known=(), later=later)
    return NamespaceDraft()


def read_secret_names(fields: Fields, name: str) -> tuple[str, ...]:
    """Read a list of names of Secrets; an empty name is left out, as in the API."""
    found = []
    for item, path in fields.items(name):
        entry = Fields(item, path, fields.faults, known=("name",))
        found.append(entry.text("name", form=DNS_SUBDOMAIN, what="a DNS name"))
    return tuple(name for name in found if name)


def _entries(top: Fields, name: str, convert: Callable[[str], Any]) -> dict[str, Any]:
    """Read a mapping of keys to text, each converted; a fault never quotes the text."""
    value = top.raw(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        top.fault(name, "must be a mapping")
        return {}
    found: dict[str, Any] = {}
    for key, text in value.items():
        place = f"{name}[{key}]"
        if not _KEY.fullmatch(key) or key == ".":
            top.fault(place, "the key must be 1 to 253 letters, digits, '-', '_' or '.'")
        elif key.startswith(".."):
            # The kubelet keeps such names for itself in a volume.
            top.fault(place, "the key must not begin with '..'")
        elif not isinstance(text, str):
            top.fault(place, "must be text; put it in quotes")
        else:
            try:
                found[key] = convert(text)
            except ValueError:
                top.fault(place, "is not base64")
    return found


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error


def _check_size(top: Fields, size_bytes: int) -> None:
    if size_bytes > LIMIT_BYTES:
        top.fault("data", f"holds {size_bytes} bytes; at most {LIMIT_BYTES} are taken")


def _check_type(top: Fields, kind: str, data: dict[str, bytes]) -> None:
    """Check that a Secret has what its type promises, as kube-apiserver does."""
    if kind == _TOKEN_TYPE:
        top.fault("type", "not supported yet; ask for a token with a projected volume")
    needed = {
        "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
        "kubernetes.io/dockercfg": (".dockercfg",),
        "kubernetes.io/ssh-auth": ("ssh-privatekey",),
        "kubernetes.io/tls": ("tls.crt", "tls.key"),
    }.get(kind, ())
    for key in needed:
        if key not in data:
            top.fault(f"data[{key}]", f"is required by the type {kind}")
        elif key.startswith(".docker") and not _is_json_mapping(data[key]):
            top.fault(f"data[{key}]", "is no JSON mapping")
    if kind == "kubernetes.io/basic-auth" and not data.keys() & {"username", "password"}:
        top.fault("data", f"needs `username` or `password` by the type {kind}")


def _is_json_mapping(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def change_faults(before: ConfigMap | Secret, after: ConfigMap | Secret) -> list[tuple[str, str]]:
    """Say what of a change is not allowed: each field with the reason."""
    found = []
    if isinstance(before, Secret) and isinstance(after, Secret) and before.type != after.type:
        found.append(("type", "cannot be changed; delete the Secret first"))
    if before.immutable:
        told = "cannot be changed, as the object is immutable; delete it first"
        if not after.immutable:
            found.append(("immutable", told))
        if _content(before) != _content(after):
            found.append(("data", told))
    return found


def _content(value: ConfigMap | Secret) -> object:
    return (value.data, value.binary_data) if isinstance(value, ConfigMap) else value.data
