"""Where a container mounts its volumes: fields and rules. Pure.

Source: Kubernetes API reference, `VolumeMount` v1, and kube-apiserver's validation.
"""

from __future__ import annotations

from typing import Any

from services.kubelet.core.brought import ImageSource
from services.kubelet.core.fields import Fields, path_fault
from services.kubelet.core.manifest_files import local_path_fault
from services.kubelet.core.model import Volume, VolumeMount

PROPAGATIONS = ("None", "HostToContainer", "Bidirectional")
_RECURSIVE = ("Disabled", "IfPossible", "Enabled")


def read_mounts(container: Fields, volumes: dict[str, Volume]) -> tuple[VolumeMount, ...]:
    """Read `volumeMounts` of a container of a pod with `volumes`."""
    found = [_mount(container, value, path, volumes) for value, path in container.items("volumeMounts")]
    paths = [mount.mount_path for mount in found]
    for place in sorted({place for place in paths if paths.count(place) > 1}):
        container.fault("volumeMounts", f"{place!r} is mounted twice")
    return tuple(found)


def _mount(container: Fields, value: Any, path: str, volumes: dict[str, Volume]) -> VolumeMount:
    fields = Fields(
        value,
        path,
        container.faults,
        known=[
            "name",
            "mountPath",
            "readOnly",
            "subPath",
            "subPathExpr",
            "mountPropagation",
            "recursiveReadOnly",
        ],
    )
    name = fields.text("name", required=True)
    if name and name not in volumes:
        fields.fault("name", f"no volume is called {name!r}")
    expression = fields.has("subPathExpr") and bool(fields.raw("subPathExpr"))
    mount = VolumeMount(
        name=name,
        mount_path=_mount_path(fields),
        read_only=fields.flag("readOnly"),
        sub_path=_sub_path(fields, "subPathExpr" if expression else "subPath"),
        sub_path_is_expression=expression,
        propagation=fields.text("mountPropagation", "None", choices=PROPAGATIONS),
        recursive_read_only=fields.text("recursiveReadOnly", "Disabled", choices=_RECURSIVE),
    )
    if expression and fields.raw("subPath"):
        fields.fault("subPathExpr", "cannot be given beside subPath")
    _check_kinds(container, fields, mount, volumes.get(name))
    return mount


def _check_kinds(container: Fields, fields: Fields, mount: VolumeMount, volume: Volume | None) -> None:
    recursive = mount.recursive_read_only != "Disabled"
    if recursive and not mount.read_only:
        fields.fault("recursiveReadOnly", "needs readOnly: true")
    if recursive and mount.propagation != "None":
        fields.fault("recursiveReadOnly", "needs the propagation None")
    if mount.propagation == "Bidirectional" and not _privileged(container):
        fields.fault("mountPropagation", "Bidirectional is for privileged containers")
    if volume is not None and isinstance(volume.source, ImageSource) and mount.propagation != "None":
        fields.fault("mountPropagation", "must be None, as the volume is an image")


def _privileged(container: Fields) -> bool:
    context = container.raw("securityContext")
    return isinstance(context, dict) and context.get("privileged") is True


def _sub_path(mount: Fields, name: str) -> str:
    """Read a path within a volume, in its shortest form."""
    given = mount.text(name)
    place = "/".join(part for part in given.split("/") if part not in ("", "."))
    if given.startswith("/"):
        mount.fault(name, "must be relative")
    elif place and (wrong := local_path_fault(place)):
        mount.fault(name, wrong)
    return place


def _mount_path(mount: Fields) -> str:
    """Read `mountPath`, in its shortest form: two ways to write a place are one place."""
    place = mount.text("mountPath", required=True)
    if not place:
        return place
    if wrong := path_fault(place) or ("must be without ':'" if ":" in place else None):
        mount.fault("mountPath", wrong)
    elif lies_in(place, "proc"):
        mount.fault("mountPath", "must not lie in /proc")
    short = "/" + "/".join(part for part in place.split("/") if part not in ("", "."))
    if short == "/":
        mount.fault("mountPath", "must not be the root of the container")
    return short


def lies_in(place: str, top: str) -> bool:
    """Tell whether an absolute path lies in a folder of the root."""
    return [part for part in place.split("/") if part not in ("", ".")][:1] == [top]
