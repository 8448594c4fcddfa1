"""The volumes of a pod: fields and rules. Pure.

Source: Kubernetes API reference, `Volume` v1. `_LATER` names the sources that
Kubernetes has and we refuse for now.
"""

from __future__ import annotations

from typing import Any

from services.kubelet.core.brought import ImageSource
from services.kubelet.core.fields import DNS_LABEL, Faults, Fields, path_fault
from services.kubelet.core.images import IMAGE, default_policy
from services.kubelet.core.manifest_files import PLUGINS, read_files
from services.kubelet.core.model import (
    EmptyDir,
    HostPath,
    PullPolicy,
    Volume,
    VolumeSource,
)

HOST_PATH_TYPES = (
    "",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
    "CharDevice",
    "BlockDevice",
)
_SOURCES = ("emptyDir", "hostPath", "image", *PLUGINS)
_LATER = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
]


def read_volume(value: Any, path: str, faults: Faults) -> Volume:
    """Read one volume."""
    fields = Fields(value, path, faults, known=("name", *_SOURCES), later=dict.fromkeys(_LATER, ()))
    name = fields.text("name", required=True, form=DNS_LABEL, what="a DNS label")
    given = [source for source in _SOURCES if fields.has(source)]
    if len(given) > 1:
        faults.add(path, "has two sources; give one")
    # A volume without a source is an emptyDir.
    return Volume(name, _source(fields, given[0]) if given else EmptyDir())


def _source(volume: Fields, name: str) -> VolumeSource:
    match name:
        case "emptyDir":
            return _empty_dir(volume)
        case "hostPath":
            return _host_path(volume)
        case "image":
            return _image(volume)
        case _:
            return read_files(volume, name)


def _empty_dir(volume: Fields) -> EmptyDir:
    fields = Fields(
        volume.raw("emptyDir"), volume.at("emptyDir"), volume.faults, known=("medium", "sizeLimit")
    )
    medium = fields.raw("medium")
    if isinstance(medium, str) and medium.startswith("HugePages"):
        fields.fault("medium", "not supported yet")
    else:
        medium = fields.text("medium", choices=("", "Memory"))
    return EmptyDir(medium == "Memory", fields.amount("sizeLimit"))


def _host_path(volume: Fields) -> HostPath:
    fields = Fields(volume.raw("hostPath"), volume.at("hostPath"), volume.faults, known=("path", "type"))
    place = fields.text("path", required=True)
    if place and (wrong := path_fault(place)):
        fields.fault("path", wrong)
    return HostPath(place, fields.text("type", choices=HOST_PATH_TYPES))


def _image(volume: Fields) -> ImageSource:
    fields = Fields(volume.raw("image"), volume.at("image"), volume.faults, known=("reference", "pullPolicy"))
    reference = fields.text("reference", required=True, form=IMAGE, what="an image reference")
    policy = fields.text("pullPolicy", default_policy(reference), choices=[p.value for p in PullPolicy])
    return ImageSource(reference, policy)
