"""What a pod brings in from elsewhere: values of variables, and volumes that are made for it.

Values only. Source: Kubernetes API reference, `EnvVarSource`, `EnvFromSource`,
`KeyToPath`, `ProjectedVolumeSource`, `ServiceAccountTokenProjection`, `ImageVolumeSource`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Origin(Enum):
    """The kind of object that something is taken from."""

    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"  # a kind, no secret


@dataclass(frozen=True, slots=True)
class KeyRef:
    """One key of a ConfigMap or Secret."""

    origin: Origin
    name: str
    key: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class FieldRef:
    """One field of the pod, such as `metadata.labels['app']`."""

    path: str
    api_version: str = "v1"


@dataclass(frozen=True, slots=True)
class ResourceRef:
    """A request or limit of a container, such as `limits.cpu`, divided by `divisor` and rounded up.

    An empty `container` is the one that asks; an empty `divisor` is 1.
    """

    resource: str
    container: str = ""
    divisor: str = ""


EnvSource = KeyRef | FieldRef | ResourceRef


@dataclass(frozen=True, slots=True)
class EnvFrom:
    """Every key of a ConfigMap or Secret as a variable, with `prefix` before its name."""

    origin: Origin
    name: str
    prefix: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A key that becomes the file `path`, relative and without `..`; `mode` None is the volume's."""

    key: str
    path: str
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class ObjectFiles:
    """Files from the keys of a ConfigMap or Secret: all of them, or those that `items` name."""

    origin: Origin
    name: str
    items: tuple[Item, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class DownwardFile:
    """A file with a field of the pod or an amount of one of its containers."""

    path: str
    source: FieldRef | ResourceRef
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class DownwardFiles:
    """Files from the pod itself."""

    items: tuple[DownwardFile, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file with a token of the pod's service account."""

    path: str
    audience: str = ""
    expiration_seconds: int = 3600


FileSource = ObjectFiles | DownwardFiles | TokenFile


@dataclass(frozen=True, slots=True)
class Projected:
    """A volume of files that the kubelet writes and keeps up to date.

    `plugin` is the field it was written as: configMap, secret, downwardAPI or projected.
    """

    plugin: str
    sources: tuple[FileSource, ...]
    default_mode: int = 0o644


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A volume that is an image, read-only."""

    reference: str
    pull_policy: str = "IfNotPresent"
