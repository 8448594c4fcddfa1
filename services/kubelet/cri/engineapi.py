"""Which version of the Engine API is spoken, and what needs more than its floor. Pure.

An engine ignores fields that it does not know: a mount would silently be less than was asked for. So a
configuration is looked through before it is sent, and refused with the version that it needs.
Source: moby's `api/docs/CHANGELOG.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import Code
from services.kubelet.cri.errors import CriError

Version = tuple[int, int]
# Engine 20.10, Debian 12's.
FLOOR: Version = (1, 41)
NEWEST: Version = (1, 56)


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that came after the floor."""

    name: str
    since: Version


CREATE_MOUNTPOINT = Feature("bind mounts that make their source", (1, 42))
ANNOTATIONS = Feature("annotations for the OCI runtime", (1, 43))
RECURSIVE_READ_ONLY = Feature("recursively read-only mounts", (1, 44))
CDI_DEVICES = Feature("CDI devices", (1, 44))
VOLUME_SUBPATH = Feature("sub-paths of volumes", (1, 45))
TMPFS_OPTIONS = Feature("options of tmpfs mounts", (1, 46))
IMAGE_VOLUMES = Feature("image volumes", (1, 48))
FEATURES = (
    *(CREATE_MOUNTPOINT, ANNOTATIONS, RECURSIVE_READ_ONLY, CDI_DEVICES),
    *(VOLUME_SUBPATH, TMPFS_OPTIONS, IMAGE_VOLUMES),
)


def parsed(text: str) -> Version:
    """Read `1.41`."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def written(version: Version) -> str:
    """Write `1.41`."""
    return f"{version[0]}.{version[1]}"


def negotiate(least: str, most: str) -> str:
    """Choose the newest version that both sides speak. Raises `CriError` for an engine below the floor.

    An engine that has given up all that we know is spoken to in its oldest.
    """
    if parsed(most) < FLOOR:
        raise CriError(
            f"The Docker Engine speaks API {most} at most; {written(FLOOR)} (Engine 20.10) is needed",
            code=Code.FAILED_PRECONDITION,
            reason="ENGINE_TOO_OLD",
            metadata={"needed": written(FLOOR), "found": most},
        )
    return written(max(parsed(least), min(NEWEST, parsed(most))))


def available(feature: Feature, version: str) -> bool:
    """Tell whether a version has a feature."""
    return parsed(version) >= feature.since


def needed(config: Mapping[str, Any]) -> Iterator[Feature]:
    """Find what a container's configuration needs beyond the floor."""
    host = config.get("HostConfig") or {}
    if host.get("Annotations"):
        yield ANNOTATIONS
    if any(request.get("Driver") == "cdi" for request in host.get("DeviceRequests") or ()):
        yield CDI_DEVICES
    for mount in host.get("Mounts") or ():
        yield from _of_mount(mount)


def _of_mount(mount: Mapping[str, Any]) -> Iterator[Feature]:
    bind = mount.get("BindOptions") or {}
    if mount.get("Type") == "image":
        yield IMAGE_VOLUMES
    if bind.get("ReadOnlyForceRecursive"):
        yield RECURSIVE_READ_ONLY
    if bind.get("CreateMountpoint"):
        yield CREATE_MOUNTPOINT
    if (mount.get("VolumeOptions") or {}).get("Subpath"):
        yield VOLUME_SUBPATH
    if (mount.get("TmpfsOptions") or {}).get("Options"):
        yield TMPFS_OPTIONS


def check(config: Mapping[str, Any], version: str) -> None:
    """Raise `CriError` when a configuration needs more than a version has."""
    for feature in needed(config):
        if not available(feature, version):
            raise CriError(
                f"This Docker Engine speaks API {version}; {feature.name} need {written(feature.since)}",
                code=Code.FAILED_PRECONDITION,
                reason="ENGINE_TOO_OLD",
                metadata={"feature": feature.name, "needed": written(feature.since), "found": version},
            )
