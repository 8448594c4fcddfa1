"""Volumes of a container, in the engine's words and back. Pure.

Source: the CRI's `Mount`, and `BindOptions` of the Docker Engine API; recursive read-only mounts exist from
API 1.44 on, where a read-only mount is one as far as the kernel can unless that is ruled out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import Code
from services.kubelet.cri.errors import CriError, invalid, unsupported
from services.kubelet.cri.naming import Record

Json = Mapping[str, Any]
RESOLV_CONF: Final = "/etc/resolv.conf"
_PROPAGATION: Final = {
    pb.PROPAGATION_PRIVATE: "rprivate",
    pb.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    pb.PROPAGATION_BIDIRECTIONAL: "rshared",
}
_BACK: Final = {name: number for number, name in _PROPAGATION.items()}


def container(
    mounts: Sequence[pb.Mount],
    *,
    resolv_conf: str = "",
    recursive: bool = False,
    images: Mapping[str, Json] | None = None,
) -> list[Json]:
    """Return a container's mounts. Raises REQUEST_INVALID, UNSUPPORTED, RRO_UNSUPPORTED.

    `recursive` tells whether the engine has recursive read-only mounts. `resolv_conf` is the sandbox's file,
    `images` the mounts of images by their path in the container.
    """
    known = images or {}
    made: list[Json] = [
        known.get(mount.container_path) or _bind(mount, recursive=recursive) for mount in mounts
    ]
    if resolv_conf and all(mount["Target"] != RESOLV_CONF for mount in made):
        made.append({"Type": "bind", "Source": resolv_conf, "Target": RESOLV_CONF})
    return made


def _bind(mount: pb.Mount, *, recursive: bool) -> dict[str, Any]:
    field = f"config.mounts[{mount.container_path}]"
    if mount.uidMappings or mount.gidMappings:
        raise unsupported(f"{field}.uidMappings", "The Docker Engine maps no users of a mount")
    if not mount.container_path:
        raise invalid("config.mounts.container_path", "must not be empty")
    if not mount.host_path:
        raise invalid(f"{field}.host_path", "must not be empty")
    options: dict[str, Any] = {"Propagation": _PROPAGATION.get(mount.propagation, "rprivate")}
    if mount.recursive_read_only:
        _check_recursive(mount, field, recursive=recursive)
        options["ReadOnlyForceRecursive"] = True
    elif mount.readonly and recursive:
        options["ReadOnlyNonRecursive"] = True
    return {
        "Type": "bind",
        "Source": mount.host_path,
        "Target": mount.container_path,
        "ReadOnly": mount.readonly,
        "BindOptions": options,
    }


def _check_recursive(mount: pb.Mount, field: str, *, recursive: bool) -> None:
    if not mount.readonly:
        raise invalid(f"{field}.recursive_read_only", "needs readonly")
    if mount.propagation != pb.PROPAGATION_PRIVATE:
        raise invalid(f"{field}.recursive_read_only", "needs the private propagation")
    if not recursive:
        # Callers know the failure by this word.
        raise CriError(
            f"RROUnsupported: {field}.recursive_read_only: this Docker Engine has no such mounts",
            code=Code.FAILED_PRECONDITION,
            reason="RRO_UNSUPPORTED",
            metadata={"field": f"{field}.recursive_read_only"},
        )


def status(inspected: Json, record: Record) -> list[pb.Mount]:
    """Tell a container's mounts back; the resolv.conf that we added was not asked for."""
    own = f"/{record.sandbox_id}/resolv.conf"
    wanted = {m.get("Target"): m for m in (inspected.get("HostConfig") or {}).get("Mounts") or ()}
    return [
        _told(found, wanted.get(found["Destination"]), record)
        for found in inspected.get("Mounts", [])
        if not (found["Destination"] == RESOLV_CONF and found.get("Source", "").endswith(own))
    ]


def _told(found: Json, wanted: Json | None, record: Record) -> pb.Mount:
    """Tell of one mount; one of an image has no path on the host."""
    made = pb.Mount(container_path=found["Destination"], readonly=not found.get("RW", True))
    image = record.image_mounts.get(found["Destination"])
    if image is None:
        made.host_path = found.get("Source", "")
        made.propagation = _BACK.get(found.get("Propagation", ""), pb.PROPAGATION_PRIVATE)
        made.recursive_read_only = _is_recursive(wanted)
        return made
    made.readonly = True
    made.image.image = image["image_ref"]
    made.image.user_specified_image = image["image"]
    made.image.image_ref = image["image_ref"]
    made.image_sub_path = image["sub_path"]
    return made


def _is_recursive(mount: Json | None) -> bool:
    return bool(((mount or {}).get("BindOptions") or {}).get("ReadOnlyForceRecursive"))
