"""Where a pod's volumes and files lie, and what is mounted. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from services.kubelet.core.brought import ImageSource, Projected
from services.kubelet.core.model import EmptyDir, HostPath, Pod, PodUid, Volume

HOSTS_PATH = "/etc/hosts"


# Places of volumes below a pod's folder, as the kubelet lays them out.
_PLUGINS = {
    "configMap": "kubernetes.io~configmap",
    "secret": "kubernetes.io~secret",
    "downwardAPI": "kubernetes.io~downward-api",
    "projected": "kubernetes.io~projected",
}
_EMPTY_DIR = "kubernetes.io~empty-dir"
_SUB_PATHS = "volume-subpaths"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: of a path of the host, or of an image."""

    host_path: str
    container_path: str
    read_only: bool = False
    propagation: str = "None"
    recursive_read_only: bool = False
    image: str = ""
    image_sub_path: str = ""


def pod_directory(state: Path, uid: PodUid) -> Path:
    """Return the folder of a pod."""
    return state / "pods" / uid


def empty_dir(state: Path, uid: PodUid, name: str) -> Path:
    """Return the folder of an emptyDir, as the kubelet lays it out."""
    return pod_directory(state, uid) / "volumes" / _EMPTY_DIR / name


def files_dir(state: Path, uid: PodUid, name: str, plugin: str) -> Path:
    """Return the folder of a volume that the kubelet writes."""
    return pod_directory(state, uid) / "volumes" / _PLUGINS[plugin] / name


def sub_path_place(state: Path, uid: PodUid, mount: tuple[str, str, int]) -> Path:
    """Return where a sub path is bound: of a volume, for a container, by the number of its mount."""
    volume, container, number = mount
    return pod_directory(state, uid) / _SUB_PATHS / volume / container / str(number)


def root_of(state: Path, uid: PodUid, volume: Volume) -> Path:
    """Return the path of a volume on the node. An image has none."""
    match volume.source:
        case EmptyDir():
            return empty_dir(state, uid, volume.name)
        case HostPath():
            return Path(volume.source.path)
        case Projected():
            return files_dir(state, uid, volume.name, volume.source.plugin)
        case ImageSource():
            raise ValueError("an image has no path on the node")


def is_ours(state: Path, path: str) -> bool:
    """Tell whether a mount below the pods' folders is one that the kubelet makes there."""
    root = state / "pods"
    if not Path(path).is_relative_to(root):
        return False
    parts = Path(path).relative_to(root).parts
    volume = len(parts) == 4 and parts[1] == "volumes" and parts[2] in (*_PLUGINS.values(), _EMPTY_DIR)
    return volume or (len(parts) == 5 and parts[1] == _SUB_PATHS)


def pods_of(mounts: Iterable[str], state: Path) -> set[PodUid]:
    """Return the pods for which something is mounted below their folders."""
    root = state / "pods"
    return {PodUid(Path(path).relative_to(root).parts[0]) for path in mounts if is_ours(state, path)}


def memory_size_bytes(pod: Pod, source: EmptyDir, node_memory_bytes: int) -> int:
    """Return the size of a volume in memory: its limit, the containers' limits, what the node has."""
    limits = [container.resources.memory_limit_bytes for container in pod.spec.containers]
    known = sum(limit for limit in limits if limit) if all(limits) else 0
    sizes = (source.size_limit_bytes or 0, known, node_memory_bytes)
    return min(size for size in sizes if size > 0)


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
    plain = (v for v in pod.spec.volumes if isinstance(v.source, EmptyDir) and not v.source.memory)
    return [empty_dir(state, pod.uid, volume.name) for volume in plain]


def with_hosts(state: Path, uid: PodUid, mounts: list[Mount]) -> list[Mount]:
    """Add a container's hosts file, unless it mounts one itself."""
    if any(mount.container_path == HOSTS_PATH for mount in mounts):
        return mounts
    return [*mounts, Mount(str(hosts_file(state, uid)), HOSTS_PATH)]
