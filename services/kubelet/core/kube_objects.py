"""What pods bring in, as a Kubernetes API server has it. Pure.

The API has checked these objects; only what the node needs of them is read.
Source: Kubernetes API reference, `ConfigMap`, `Secret` and `Service` v1.
"""

from __future__ import annotations

import base64
import binascii
from types import MappingProxyType
from typing import Any

from services.common.kuberequest import Json
from services.kubelet.core.kube_pod import moment
from services.kubelet.core.model import ConfigMap, Protocol, Secret, Service, ServicePort, ServiceType


def read_config_map(value: Json) -> ConfigMap:
    """Read a ConfigMap. Raises `ValueError`."""
    return ConfigMap(
        **_metadata(value),
        data=MappingProxyType(dict(value.get("data") or {})),
        binary_data=_bytes(value.get("binaryData")),
        immutable=bool(value.get("immutable")),
    )


def read_secret(value: Json) -> Secret:
    """Read a Secret. Raises `ValueError`, without a value in it."""
    return Secret(
        **_metadata(value),
        data=_bytes(value.get("data")),
        type=str(value.get("type") or "Opaque"),
        immutable=bool(value.get("immutable")),
    )


def read_service(value: Json) -> Service:
    """Read what variables say of a service: its address and its ports."""
    spec = value.get("spec") or {}
    address = str(spec.get("clusterIP") or "")
    ports = [_port(item) for item in spec.get("ports") or () if item.get("protocol", "TCP") in _PROTOCOLS]
    return Service(
        **_metadata(value),
        cluster_ip="" if address == "None" else address,
        ports=tuple(ports),
        type=ServiceType.NODE_PORT if spec.get("type") == "NodePort" else ServiceType.CLUSTER_IP,
    )


_PROTOCOLS = frozenset(protocol.value for protocol in Protocol)


def _port(value: Json) -> ServicePort:
    port = int(value["port"])
    protocol = Protocol(value.get("protocol", "TCP"))
    return ServicePort(port, value.get("targetPort") or port, str(value.get("name") or ""), protocol)


def _metadata(value: Json) -> dict[str, Any]:
    meta = value["metadata"]
    revision = str(meta.get("resourceVersion") or "")
    return {
        "uid": str(meta.get("uid") or ""),
        "namespace": str(meta["namespace"]),
        "name": str(meta["name"]),
        "labels": MappingProxyType(dict(meta.get("labels") or {})),
        "annotations": MappingProxyType(dict(meta.get("annotations") or {})),
        "creation_time": moment(meta.get("creationTimestamp")),
        "revision": int(revision) if revision.isdecimal() else 0,
    }


def _bytes(values: Any) -> MappingProxyType[str, bytes]:
    try:
        return MappingProxyType({key: base64.b64decode(text) for key, text in (values or {}).items()})
    except (binascii.Error, TypeError):
        raise ValueError("a value is not base64") from None
