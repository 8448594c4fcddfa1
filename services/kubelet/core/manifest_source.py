"""Where values of variables and files come from: fields and rules. Pure.

Source: Kubernetes API reference, `EnvVarSource`, `EnvFromSource`, `ObjectFieldSelector`,
`ResourceFieldSelector`, and the validation of kube-apiserver.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from services.kubelet.core import quantity
from services.kubelet.core.brought import (
    EnvFrom,
    EnvSource,
    FieldRef,
    KeyRef,
    Origin,
    ResourceRef,
)
from services.kubelet.core.fields import DNS_LABEL, DNS_SUBDOMAIN, ENV_NAME, Faults, Fields, label_key_fault
from services.kubelet.core.model import EnvVar

OBJECT_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_ENV_PREFIX = re.compile(r"[ -<>-~]*")
_META_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid")
ENV_FIELDS = (
    *_META_FIELDS,
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
FILE_FIELDS = (*_META_FIELDS, "metadata.labels", "metadata.annotations")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")
_RESOURCES = tuple(
    f"{part}.{name}" for part in ("limits", "requests") for name in ("cpu", "memory", "ephemeral-storage")
)
_CPU_DIVISORS = ("", "0", "1m", "1")
_BYTE_DIVISORS = ("", "0", "1", *(f"1{unit}" for unit in ("k", "M", "G", "T", "P", "E")))
_BYTE_DIVISORS += tuple(f"1{unit}i" for unit in "KMGTPE")


def read_variable(value: Any, path: str, faults: Faults) -> EnvVar:
    """Read one item of `env`."""
    fields = Fields(value, path, faults, known=("name", "value", "valueFrom"))
    name = fields.text("name", required=True, form=ENV_NAME, what="a name for a variable")
    text = fields.text("value")
    if not fields.has("valueFrom"):
        return EnvVar(name, text)
    if text:
        fields.fault("valueFrom", "cannot be given beside a value")
    source = Fields(
        fields.raw("valueFrom"),
        fields.at("valueFrom"),
        faults,
        known=("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"),
        later={"fileKeyRef": ()},
    )
    return EnvVar(name, "", _source(source))


def _source(fields: Fields) -> EnvSource | None:
    readers: dict[str, Callable[[], EnvSource]] = {
        "fieldRef": lambda: read_field(fields, ENV_FIELDS),
        "resourceFieldRef": lambda: read_resource(fields),
        "configMapKeyRef": lambda: _key(fields, "configMapKeyRef", Origin.CONFIG_MAP),
        "secretKeyRef": lambda: _key(fields, "secretKeyRef", Origin.SECRET),
    }
    given = [name for name in readers if fields.has(name)]
    if len(given) != 1:
        if not fields.has("fileKeyRef"):
            fields.faults.add(fields.path, "needs one source" if not given else "has two sources; give one")
        return None
    return readers[given[0]]()


def read_field(parent: Fields, allowed: tuple[str, ...]) -> FieldRef:
    """Read `fieldRef`, which may name one of `allowed`, or a label or annotation by its key."""
    fields = Fields(
        parent.raw("fieldRef"), parent.at("fieldRef"), parent.faults, known=("fieldPath", "apiVersion")
    )
    version = fields.text("apiVersion", "v1", choices=("v1", "")) or "v1"
    path = fields.text("fieldPath", required=True)
    keyed = _KEYED.fullmatch(path)
    if keyed and (wrong := label_key_fault(keyed[2])):
        fields.fault("fieldPath", wrong)
    elif path and not keyed and path not in allowed:
        known = ", ".join(allowed)
        fields.fault(
            "fieldPath", f"{path!r} is none of {known}, metadata.labels['K'], metadata.annotations['K']"
        )
    return FieldRef(path, version)


def read_resource(parent: Fields, *, container_required: bool = False) -> ResourceRef:
    """Read `resourceFieldRef`; whether its container exists is for the pod to check."""
    fields = Fields(
        parent.raw("resourceFieldRef"),
        parent.at("resourceFieldRef"),
        parent.faults,
        known=("resource", "containerName", "divisor"),
    )
    resource = fields.text("resource", required=True)
    if "hugepages-" in resource:
        fields.fault("resource", "not supported yet")
    elif resource and resource not in _RESOURCES:
        fields.fault("resource", f"{resource!r} is none of {', '.join(_RESOURCES)}")
    container = fields.text(
        "containerName", required=container_required, form=DNS_LABEL, what="the name of a container"
    )
    return ResourceRef(resource, container, _divisor(fields, resource))


def _divisor(fields: Fields, resource: str) -> str:
    """Read `divisor`: text or a number, one of those that make sense for the resource."""
    raw = fields.raw("divisor")
    text = str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else fields.text("divisor")
    allowed = _CPU_DIVISORS if resource.endswith(".cpu") else _BYTE_DIVISORS
    if text not in allowed:
        fields.fault("divisor", f"{text!r} is none of {', '.join(allowed[2:])}")
        return ""
    return "" if text == "0" else text


def divided(amount: int, divisor: str, *, milli: bool) -> int:
    """Divide an amount, of thousandths where `milli`, and round up, as Kubernetes does."""
    by = quantity.parse(divisor or "1") * (1000 if milli else 1)
    return quantity.rounded_up(amount / by)


def _key(parent: Fields, name: str, origin: Origin) -> KeyRef:
    fields = Fields(parent.raw(name), parent.at(name), parent.faults, known=("name", "key", "optional"))
    return KeyRef(
        origin,
        fields.text("name", required=True, form=DNS_SUBDOMAIN, what="a DNS name"),
        fields.text("key", required=True, form=OBJECT_KEY, what="a key"),
        fields.flag("optional"),
    )


def read_env_from(value: Any, path: str, faults: Faults) -> EnvFrom:
    """Read one item of `envFrom`."""
    fields = Fields(value, path, faults, known=("prefix", "configMapRef", "secretRef"))
    given = [name for name in ("configMapRef", "secretRef") if fields.has(name)]
    if len(given) != 1:
        faults.add(path, "needs one of configMapRef and secretRef")
    name = given[0] if given else "configMapRef"
    prefix = fields.text("prefix", form=_ENV_PREFIX, what="the beginning of a variable's name")
    origin = Origin.SECRET if name == "secretRef" else Origin.CONFIG_MAP
    if not given:
        return EnvFrom(origin, "", prefix)
    ref = Fields(fields.raw(name), fields.at(name), faults, known=("name", "optional"))
    named = ref.text("name", required=True, form=DNS_SUBDOMAIN, what="a DNS name")
    return EnvFrom(origin, named, prefix, ref.flag("optional"))
