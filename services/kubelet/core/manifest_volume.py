"""The volumes of a pod: fields and rules. Pure.

Source: Kubernetes API reference, `Volume` v1. `_LATER` names the sources that
Kubernetes has and we refuse for now.
"""

from __future__ import annotations

from typing import Any

from services.kubelet.core.fields import DNS_LABEL, Faults, Fields, path_fault
from services.kubelet.core.model import EmptyDir, HostPath, Volume

_HOST_PATH_LATER = (
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
    "CharDevice",
    "BlockDevice",
)
_LATER = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
]


def read_volume(value: Any, path: str, faults: Faults) -> Volume:
    """Read one volume."""
    fields = Fields(
        value,
        path,
        faults,
        known=("name", "emptyDir", "hostPath"),
        later=dict.fromkeys(_LATER, ()),
    )
    name = fields.text("name", required=True, form=DNS_LABEL, what="a DNS label")
    if fields.has("emptyDir") and fields.has("hostPath"):
        faults.add(path, "has two sources; give one")
    if fields.has("hostPath"):
        return Volume(name, _host_path(fields.raw("hostPath"), fields.at("hostPath"), faults))
    # A volume without a source is an emptyDir.
    if fields.has("emptyDir"):
        later = {"medium": ("",), "sizeLimit": ()}
        Fields(fields.raw("emptyDir"), fields.at("emptyDir"), faults, known=(), later=later)
    return Volume(name, EmptyDir())


def _host_path(value: Any, path: str, faults: Faults) -> HostPath:
    fields = Fields(value, path, faults, known=("path", "type"))
    place = fields.text("path", required=True)
    if place and (wrong := path_fault(place)):
        fields.fault("path", wrong)
    # A check of the host's files needs a sight of them that the kubelet does not have yet.
    if fields.raw("type") in _HOST_PATH_LATER:
        fields.fault("type", "not supported yet; leave it out, and the path must exist")
    else:
        fields.text("type", choices=("",))
    return HostPath(place)
