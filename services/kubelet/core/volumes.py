"""Where a pod's volumes and files lie, and what is mounted. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.kubelet.core.model import Container, EmptyDir, HostPath, Pod, PodUid

HOSTS_PATH = "/etc/hosts"


@dataclass(frozen=True, slots=True)
class Mount:
    """One bind mount."""

    host_path: str
    container_path: str
    read_only: bool = False


def pod_directory(state: Path, uid: PodUid) -> Path:
    """Return the folder of a pod."""
    return state / "pods" / uid


def empty_dir(state: Path, uid: PodUid, name: str) -> Path:
    """Return the folder of an emptyDir, as the kubelet lays it out."""
    return pod_directory(state, uid) / "volumes" / "kubernetes.io~empty-dir" / name


def hosts_file(state: Path, uid: PodUid) -> Path:
    """Return the pod's /etc/hosts."""
    return pod_directory(state, uid) / "etc-hosts"


def log_root(state: Path) -> Path:
    """Return the folder of all logs."""
    return state / "pod-logs"


def seccomp_profile(state: Path, name: str) -> Path:
    """Return the file of a seccomp profile that pods name."""
    return state / "seccomp" / name


def record_file(state: Path, uid: PodUid) -> Path:
    """Return the file of what must not be forgotten of a pod."""
    return pod_directory(state, uid) / "record.json"


def log_directory(state: Path, pod: Pod) -> Path:
    """Return the folder of a pod's logs."""
    return log_root(state) / f"{pod.namespace}_{pod.name}_{pod.uid}"


def log_path(container: str, attempt: int) -> str:
    """Return a container's log file within its pod's folder."""
    return f"{container}/{attempt}.log"


def directories(state: Path, pod: Pod) -> list[Path]:
    """Return the folders that must be there before the pod's containers start."""
    return [empty_dir(state, pod.uid, v.name) for v in pod.spec.volumes if isinstance(v.source, EmptyDir)]


def mounts(state: Path, pod: Pod, container: Container) -> list[Mount]:
    """Return a container's mounts, with its hosts file unless it mounts one itself."""
    sources = {volume.name: volume.source for volume in pod.spec.volumes}
    found = []
    for mount in container.volume_mounts:
        source = sources[mount.name]
        if isinstance(source, EmptyDir):
            path = str(empty_dir(state, pod.uid, mount.name))
        else:
            assert isinstance(source, HostPath), "other volumes are refused"
            path = source.path
        found.append(Mount(path, mount.mount_path, mount.read_only))
    if all(mount.container_path != HOSTS_PATH for mount in found):
        found.append(Mount(str(hosts_file(state, pod.uid)), HOSTS_PATH))
    return found
