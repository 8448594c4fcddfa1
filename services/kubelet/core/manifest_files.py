"""Volumes of files that the kubelet writes: fields and rules. Pure.

Source: Kubernetes API reference, `ConfigMapVolumeSource`, `SecretVolumeSource`,
`DownwardAPIVolumeSource`, `ProjectedVolumeSource`, and kube-apiserver's validation.
"""

from __future__ import annotations

from typing import Any

from services.kubelet.core.brought import (
    DownwardFile,
    DownwardFiles,
    FileSource,
    Item,
    ObjectFiles,
    Origin,
    Projected,
    TokenFile,
)
from services.kubelet.core.fields import DNS_SUBDOMAIN, Faults, Fields, control_fault
from services.kubelet.core.manifest_source import FILE_FIELDS, OBJECT_KEY, read_field, read_resource

PLUGINS = ("configMap", "secret", "downwardAPI", "projected")
_MODE = 0o644
_MAX_MODE = 0o777
_PATH_LIMIT_BYTES = 4096
_TOKEN_SECONDS = (600, 1 << 32)


def read_files(volume: Fields, plugin: str) -> Projected:
    """Read the source of a volume that one of `PLUGINS` makes."""
    own = {
        "configMap": ("name", "items", "optional"),
        "secret": ("secretName", "items", "optional"),
        "downwardAPI": ("items",),
        "projected": ("sources",),
    }[plugin]
    fields = Fields(volume.raw(plugin), volume.at(plugin), volume.faults, known=(*own, "defaultMode"))
    default_mode = fields.whole("defaultMode", _MODE, low=0, high=_MAX_MODE)
    sources: tuple[FileSource, ...]
    match plugin:
        case "configMap":
            sources = (_object_files(fields, Origin.CONFIG_MAP, "name"),)
        case "secret":
            sources = (_object_files(fields, Origin.SECRET, "secretName"),)
        case "downwardAPI":
            sources = (_downward(fields),)
        case _:
            found = [_source(item, place, fields.faults) for item, place in fields.items("sources")]
            sources = tuple(source for source in found if source is not None)
            _check_conflicts(fields, sources)
    return Projected(plugin, sources, default_mode)


def _source(value: Any, path: str, faults: Faults) -> FileSource | None:
    """Read one source of a projected volume."""
    known = ("configMap", "secret", "downwardAPI", "serviceAccountToken")
    later = {"clusterTrustBundle": (), "podCertificate": ()}
    fields = Fields(value, path, faults, known=known, later=later)
    given = [name for name in known if fields.has(name)]
    if len(given) != 1:
        if not any(fields.has(name) for name in later):
            faults.add(path, "needs one source" if not given else "has two sources; give one")
        return None
    place = fields.at(given[0])
    match given[0]:
        case "configMap" | "secret" as name:
            inner = Fields(fields.raw(name), place, faults, known=("name", "items", "optional"))
            return _object_files(inner, Origin.SECRET if name == "secret" else Origin.CONFIG_MAP, "name")
        case "downwardAPI":
            return _downward(Fields(fields.raw("downwardAPI"), place, faults, known=("items",)))
        case _:
            return _token(fields.raw("serviceAccountToken"), place, faults)


def _object_files(fields: Fields, origin: Origin, name_field: str) -> ObjectFiles:
    name = fields.text(name_field, required=True, form=DNS_SUBDOMAIN, what="a DNS name")
    items = tuple(_item(item, place, fields.faults) for item, place in fields.items("items"))
    fields.faults.unique(fields.at("items"), [item.path for item in items])
    return ObjectFiles(origin, name, items, fields.flag("optional"))


def _item(value: Any, path: str, faults: Faults) -> Item:
    fields = Fields(value, path, faults, known=("key", "path", "mode"))
    key = fields.text("key", required=True, form=OBJECT_KEY, what="a key")
    return Item(key, read_path(fields), _mode(fields))


def _mode(fields: Fields) -> int | None:
    return fields.whole("mode", 0, low=0, high=_MAX_MODE) if fields.has("mode") else None


def read_path(fields: Fields) -> str:
    """Read `path`: relative, and in no way out of the volume."""
    path = fields.text("path", required=True)
    if path and (wrong := local_path_fault(path)):
        fields.fault("path", wrong)
    return path


def local_path_fault(path: str) -> str | None:
    """Say what is wrong with a path within a volume; None when nothing is."""
    if path.startswith("/"):
        return "must be relative"
    parts = path.split("/")
    if ".." in parts:
        return "must be without '..'"
    if parts[0].startswith(".."):
        return "must not begin with '..'"
    if any(part in ("", ".") for part in parts):
        return "must be in its shortest form, without './', '//' or '/' at its end"
    if len(path.encode()) > _PATH_LIMIT_BYTES or any(len(part.encode()) > 255 for part in parts):
        return "is too long"
    return control_fault(path)


def _downward(fields: Fields) -> DownwardFiles:
    items = tuple(_downward_file(item, place, fields.faults) for item, place in fields.items("items"))
    found = [item for item in items if item is not None]
    fields.faults.unique(fields.at("items"), [item.path for item in found])
    return DownwardFiles(tuple(found))


def _downward_file(value: Any, path: str, faults: Faults) -> DownwardFile | None:
    fields = Fields(value, path, faults, known=("path", "fieldRef", "resourceFieldRef", "mode"))
    place, mode = read_path(fields), _mode(fields)
    if fields.has("fieldRef") is fields.has("resourceFieldRef"):
        faults.add(path, "needs one of fieldRef and resourceFieldRef")
        return None
    if fields.has("fieldRef"):
        return DownwardFile(place, read_field(fields, FILE_FIELDS), mode)
    return DownwardFile(place, read_resource(fields, container_required=True), mode)


def _token(value: Any, path: str, faults: Faults) -> TokenFile:
    fields = Fields(value, path, faults, known=("audience", "expirationSeconds", "path"))
    low, high = _TOKEN_SECONDS
    seconds = fields.whole("expirationSeconds", 3600, low=low, high=high)
    return TokenFile(read_path(fields), fields.text("audience"), seconds)


def _check_conflicts(fields: Fields, sources: tuple[FileSource, ...]) -> None:
    """Refuse two files of one path, and a file where another needs a folder."""
    paths = [path for source in sources for path in paths_of(source)]
    fields.faults.unique(fields.at("sources"), paths)
    for path in sorted(set(paths)):
        if any(other.startswith(f"{path}/") for other in paths):
            fields.fault("sources", f"{path!r} is a file, and the folder of another")


def paths_of(source: FileSource) -> list[str]:
    """Return the paths that a source names itself; keys without items are not among them."""
    match source:
        case TokenFile():
            return [source.path]
        case ObjectFiles() | DownwardFiles():
            return [item.path for item in source.items]
