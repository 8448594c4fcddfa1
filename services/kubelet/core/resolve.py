"""Find the values that a pod brings in: from its objects, from itself, from the node. Pure.

Source: the kubelet's `makeEnvironmentVariables`, `envvars.FromServices` and the volume
plugins. What is missing is told by name, and never with a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from services.kubelet.core import env
from services.kubelet.core.brought import (
    DownwardFiles,
    EnvFrom,
    EnvSource,
    FieldRef,
    KeyRef,
    ObjectFiles,
    Origin,
    Projected,
    ResourceRef,
)
from services.kubelet.core.fields import ENV_NAME
from services.kubelet.core.manifest_source import divided
from services.kubelet.core.model import ConfigMap, Container, Pod, Secret, Service

_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")
Named = tuple[Origin, str]
# The namespace and name of the service that is the API itself.
API_SERVICE = ("default", "kubernetes")


class MissingError(Exception):
    """Something that a pod needs is not there, or cannot be used; says what."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the node knows of itself and of a pod's sandbox; amounts are what pods can have."""

    node_name: str = ""
    host_ips: tuple[str, ...] = ()
    pod_ips: tuple[str, ...] = ()
    cpu_millicores: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The objects that were asked for; one that is not there is absent."""

    objects: Mapping[Named, ConfigMap | Secret] = field(
        default_factory=lambda: MappingProxyType({}), repr=False
    )
    services: Sequence[Service] = ()


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables of a container, and the names that were left out: by object, none can be a variable."""

    values: Mapping[str, str] = field(repr=False)
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


def needed_by(container: Container) -> set[Named]:
    """Return the objects that a container's variables come from."""
    keys = {(v.source.origin, v.source.name) for v in container.env if isinstance(v.source, KeyRef)}
    return keys | {(source.origin, source.name) for source in container.env_from}


def needed_by_volumes(pod: Pod) -> set[Named]:
    """Return the objects that a pod's volumes are made from."""
    return {
        (source.origin, source.name)
        for volume in pod.spec.volumes
        if isinstance(volume.source, Projected)
        for source in volume.source.sources
        if isinstance(source, ObjectFiles)
    }


def needs_address(container: Container) -> bool:
    """Tell whether a variable is the pod's address, which only its sandbox has."""
    sources = [variable.source for variable in container.env]
    return any(isinstance(s, FieldRef) and s.path.startswith("status.podIP") for s in sources)


def environment(pod: Pod, container: Container, found: Found, around: Surroundings) -> Environment:
    """Compute a container's variables. Raises `MissingError`, `env.TooLongError`."""
    skipped: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    for source in container.env_from:
        values, left = _all_of(pod, source, found)
        given |= values
        if left:
            skipped[f"{source.origin.value} {pod.namespace}/{source.name}"] = left

    def value_of(source: EnvSource) -> str | None:
        return _value(pod, container, source, found, around)

    links = service_variables(pod, found.services)
    values = env.environment(container.env, given=given, behind=links, resolve=value_of)
    return Environment(values, skipped)


def _all_of(pod: Pod, source: EnvFrom, found: Found) -> tuple[dict[str, str], tuple[str, ...]]:
    value = found.objects.get((source.origin, source.name))
    if value is None:
        if source.optional:
            return {}, ()
        raise MissingError(f'{source.origin.value.lower()} "{source.name}" not found')
    values: dict[str, str] = {}
    left = []
    for key, data in value.data.items():
        text = _text(data)
        if text is None or not ENV_NAME.fullmatch(source.prefix + key):
            left.append(source.prefix + key)
        else:
            values[source.prefix + key] = text
    return values, tuple(sorted(left))


def _text(data: str | bytes) -> str | None:
    """Return what a variable can hold; None for what none can."""
    try:
        text = data.decode() if isinstance(data, bytes) else data
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _value(
    pod: Pod, container: Container, source: EnvSource, found: Found, around: Surroundings
) -> str | None:
    match source:
        case FieldRef():
            return field_text(pod, source.path, around)
        case ResourceRef():
            return amount_text(pod, container, source, around)
        case KeyRef():
            return _of_key(pod, source, found)


def _of_key(pod: Pod, source: KeyRef, found: Found) -> str | None:
    value = found.objects.get((source.origin, source.name))
    kind = source.origin.value
    if value is None:
        if source.optional:
            return None
        raise MissingError(f'{kind.lower()} "{source.name}" not found')
    if source.key not in value.data:
        if source.optional:
            return None
        raise MissingError(f"couldn't find key {source.key} in {kind} {pod.namespace}/{source.name}")
    text = _text(value.data[source.key])
    if text is None:
        what = f"the key {source.key} of {kind} {pod.namespace}/{source.name}"
        raise MissingError(f"{what} is no text that a variable can hold")
    return text


def field_text(pod: Pod, path: str, around: Surroundings) -> str:
    """Return a field of a pod as a variable or a file has it."""
    if keyed := _KEYED.fullmatch(path):
        return (pod.labels if keyed[1] == "labels" else pod.annotations).get(keyed[2], "")
    match path:
        case "metadata.name":
            return pod.name
        case "metadata.namespace":
            return pod.namespace
        case "metadata.uid":
            return pod.uid
        case "metadata.labels":
            return _lines(pod.labels)
        case "metadata.annotations":
            return _lines(pod.annotations)
        case "spec.nodeName":
            return around.node_name
        case "spec.serviceAccountName":
            return pod.spec.service_account_name
        case "status.hostIP":
            return around.host_ips[0] if around.host_ips else ""
        case "status.hostIPs":
            return ",".join(around.host_ips)
        case "status.podIP":
            return around.pod_ips[0] if around.pod_ips else ""
        case "status.podIPs":
            return ",".join(around.pod_ips)
        case _:
            raise MissingError(f"the pod has no field {path!r}")


def _lines(values: Mapping[str, str]) -> str:
    """Write labels one a line, sorted, with the value quoted as Go's %q does for plain text."""
    return "\n".join(f"{key}={_quoted(value)}" for key, value in sorted(values.items()))


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def _quoted(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _code(c)) for c in text) + '"'


def _code(character: str) -> str:
    number = ord(character)
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def amount_text(pod: Pod, asking: Container | None, source: ResourceRef, around: Surroundings) -> str:
    """Return a request or limit; a limit that is not set is what the node can give."""
    named = [c for c in pod.spec.every if c.name == source.container] if source.container else [asking]
    if not named or named[0] is None:
        raise MissingError(f"container {source.container!r} not found")
    wanted = named[0].resources
    amounts: Mapping[str, tuple[int | None, int]] = {
        "limits.cpu": (wanted.cpu_limit_millicores, around.cpu_millicores),
        "limits.memory": (wanted.memory_limit_bytes, around.memory_bytes),
        "limits.ephemeral-storage": (None, around.disk_bytes),
        "requests.cpu": (wanted.cpu_request_millicores, 0),
        "requests.memory": (wanted.memory_request_bytes, 0),
        "requests.ephemeral-storage": (None, 0),
    }
    own, default = amounts[source.resource]
    # A limit of zero is none, as it is for the kernel.
    amount = own or default if source.resource.startswith("limits.") else own or 0
    return str(divided(amount, source.divisor, milli=source.resource.endswith(".cpu")))


def service_variables(pod: Pod, services: Sequence[Service]) -> dict[str, str]:
    """Return the variables that name services, in the forms of Kubernetes and of Docker's links."""
    found: dict[str, str] = {}
    for service in services:
        is_api = (service.namespace, service.name) == API_SERVICE
        linked = pod.spec.enable_service_links and service.namespace == pod.namespace
        if service.cluster_ip and service.ports and (is_api or linked):
            found |= _links(service)
    return found


def _links(service: Service) -> dict[str, str]:
    name, address = _upper(service.name), service.cluster_ip
    first = service.ports[0]
    found = {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": str(first.port)}
    for port in service.ports:
        if port.name:
            found[f"{name}_SERVICE_PORT_{_upper(port.name)}"] = str(port.port)
        protocol = port.protocol.value
        host = f"[{address}]" if ":" in address else address
        url = f"{protocol.lower()}://{host}:{port.port}"
        if port is first:
            found[f"{name}_PORT"] = url
        prefix = f"{name}_PORT_{port.port}_{protocol}"
        found |= {
            prefix: url,
            f"{prefix}_PROTO": protocol.lower(),
            f"{prefix}_PORT": str(port.port),
            f"{prefix}_ADDR": address,
        }
    return found


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()


def has_downward_files(pod: Pod) -> bool:
    """Tell whether a volume shows the pod's own labels or annotations, which may change."""
    return any(
        isinstance(source, DownwardFiles)
        for volume in pod.spec.volumes
        if isinstance(volume.source, Projected)
        for source in volume.source.sources
    )
