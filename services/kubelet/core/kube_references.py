"""Which ConfigMaps and Secrets a pod of the API names. Pure.

Source: the kubelet's `util/podutil.VisitPodSecretNames` and `VisitPodConfigmapNames`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.common.kuberequest import Json
from services.kubelet.core.model import ObjectKey

_NAMED = {
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
}


def references(body: Json) -> frozenset[ObjectKey]:
    """Return what a pod names in its variables, volumes and pull secrets."""
    namespace = body["metadata"]["namespace"]
    spec = body.get("spec") or {}
    found = {("Secret", item.get("name")) for item in spec.get("imagePullSecrets") or ()}
    for containers in ("initContainers", "containers", "ephemeralContainers"):
        found |= set(_named(spec.get(containers) or ()))
    for volume in spec.get("volumes") or ():
        found |= set(_volume(volume))
    return frozenset(ObjectKey(kind, namespace, str(name)) for kind, name in found if name)


def _named(value: Any) -> Iterator[tuple[str, str | None]]:
    """Walk through containers and find every reference of a variable."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _NAMED and isinstance(inner, dict):
                yield _NAMED[key], inner.get("name")
            else:
                yield from _named(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner)


def _volume(value: Json) -> Iterator[tuple[str, str | None]]:
    if isinstance(source := value.get("configMap"), dict):
        yield "ConfigMap", source.get("name")
    if isinstance(source := value.get("secret"), dict):
        yield "Secret", source.get("secretName") or source.get("name")
    if isinstance(projected := value.get("projected"), dict):
        for part in projected.get("sources") or ():
            for kind, name in (("ConfigMap", "configMap"), ("Secret", "secret")):
                if isinstance(source := part.get(name), dict):
                    yield kind, source.get("name")
