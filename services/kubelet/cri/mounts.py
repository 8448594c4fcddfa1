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

Json = Mapping[str, Any]
RESOLV_CONF: Final = "/etc/resolv.conf"
_PROPAGATION: Final = {
    pb.PROPAGATION_PRIVATE: "rprivate",
    pb.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    pb.PROPAGATION_BIDIRECTIONAL: "rshared",
}
_BACK: Final = {name: number for number, name in _PROPAGATION.items()}


def container(
    mounts: Sequence[pb.Mount], *, resolv_conf: str = "", recursive: bool = False
) -> list[dict[str, Any]]:
    """Return a container's mounts. Raises REQUEST_INVALID, UNSUPPORTED, RRO_UNSUPPORTED.

    `recursive` tells whether the engine has recursive read-only mounts. `resolv_conf` is the sandbox's file.
    """
    made = [_bind(mount, recursive=recursive) for mount in mounts]
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


def status(inspected: Json, sandbox_id: str) -> list[pb.Mount]:
    """Tell a container's mounts back; the resolv.conf that we added was not asked for."""
    own = f"/{sandbox_id}/resolv.conf"
    wanted = {m.get("Target"): m for m in (inspected.get("HostConfig") or {}).get("Mounts") or ()}
    return [
        pb.Mount(
            container_path=found["Destination"],
            host_path=found.get("Source", ""),
            readonly=not found.get("RW", True),
            propagation=_BACK.get(found.get("Propagation", ""), pb.PROPAGATION_PRIVATE),
            recursive_read_only=_is_recursive(wanted.get(found["Destination"])),
        )
        for found in inspected.get("Mounts", [])
        if not (found["Destination"] == RESOLV_CONF and found.get("Source", "").endswith(own))
    ]


def _is_recursive(mount: Json | None) -> bool:
    return bool(((mount or {}).get("BindOptions") or {}).get("ReadOnlyForceRecursive"))
