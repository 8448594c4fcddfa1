"""ConfigMaps, Secrets, ServiceAccounts and Namespaces as Kubernetes JSON. Pure."""

from __future__ import annotations

from base64 import b64encode

from services.kubelet.core.model import ConfigMap, Namespace, Secret, ServiceAccount
from services.kubelet.core.render import Json, kept, metadata

# `kubectl apply` keeps all of what it was given there, values too.
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def config_map(value: ConfigMap) -> Json:
    """Write a ConfigMap."""
    binary = {key: b64encode(data).decode() for key, data in value.binary_data.items()}
    content = kept({"data": dict(value.data), "binaryData": binary})
    return _object("ConfigMap", value) | content | _immutable(immutable=value.immutable)


def secret(value: Secret) -> Json:
    """Write a Secret with its values: for the store alone."""
    data = {key: b64encode(part).decode() for key, part in value.data.items()}
    content = kept({"data": data}) | {"type": value.type}
    return _object("Secret", value) | content | _immutable(immutable=value.immutable)


def redacted(value: Secret) -> Json:
    """Write a Secret for whoever asks: the size of each value stands in its place."""
    made = secret(value)
    if value.data:
        made["data"] = {key: f"{len(part)} bytes" for key, part in value.data.items()}
    if _LAST_APPLIED in value.annotations:
        made["metadata"]["annotations"][_LAST_APPLIED] = "left out, as it may hold values"
    return made


def service_account(value: ServiceAccount) -> Json:
    """Write a ServiceAccount."""
    names = [{"name": name} for name in value.image_pull_secrets]
    automount = (
        {} if value.automount_token is None else {"automountServiceAccountToken": value.automount_token}
    )
    return _object("ServiceAccount", value) | kept({"imagePullSecrets": names}) | automount


def namespace(value: Namespace) -> Json:
    """Write a Namespace."""
    return _object("Namespace", value)


def _object(kind: str, value: ConfigMap | Secret | ServiceAccount | Namespace) -> Json:
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata(value)}


def _immutable(*, immutable: bool) -> Json:
    return {"immutable": True} if immutable else {}
