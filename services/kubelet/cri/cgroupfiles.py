"""Reads the cgroup files and the network counters of a process, as far as they are seen from here. Blocks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from services.kubelet.cri import cgroupdetail, cgroupstats
from services.kubelet.cri.cgroupdetail import Detail
from services.kubelet.cri.cgroupstats import FILES, Interface, Usage

_MOST_BYTES = 1 << 20


class CgroupFiles:
    """Remembers where the cgroups of a container are. A process id that is used again is nobody's."""

    def __init__(self, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._root = root

    def places(self, container_id: str, pid: int) -> Mapping[str, str]:
        """Return the folders of a container's cgroups by controller; none when `pid` is not in them."""
        try:
            content = (self._proc / str(pid) / "cgroup").read_text()
        except OSError:
            return {}
        found = {name: path for name, path in cgroupstats.places(content).items() if container_id in path}
        return {name: folder for name, path in found.items() if (folder := self._folder(name, path))}

    def _folder(self, controller: str, path: str) -> str:
        """Name a cgroup's folder; the v2 tree may be mounted beside the v1 ones."""
        mounts = [controller] if controller else ["", "unified"]
        candidates = [f"{self._root}/{mount}{path}" if mount else f"{self._root}{path}" for mount in mounts]
        return next((candidate for candidate in candidates if os.path.isdir(candidate)), "")  # noqa: PTH112  # hot

    def usage(self, places: Mapping[str, str], *, parent: bool = False) -> Usage | None:
        """Read what a container, or the pod's cgroup above it, uses; None when it is not there."""
        up = {name: os.path.dirname(folder) if parent else folder for name, folder in places.items()}  # noqa: PTH120  # hot
        return cgroupstats.usage({name: _contents(up[name], FILES[name]) for name in FILES if name in up})

    def detail(self, places: Mapping[str, str]) -> Detail:
        """Read what only metrics tell of a container."""
        files = {
            name: _contents(places[name], cgroupdetail.FILES[name])
            for name in places
            if name in cgroupdetail.FILES
        }
        return cgroupdetail.detail(files)

    def descriptors(self, places: Mapping[str, str]) -> tuple[int, int]:
        """Count the open files and the sockets among them of all processes of a container."""
        folder = next((places[name] for name in ("", "memory", "pids") if name in places), "")
        pids = _contents(folder, ("cgroup.procs",)).get("cgroup.procs", b"").split() if folder else []
        found = [_targets(f"{self._proc}/{pid.decode()}/fd") for pid in pids]
        return sum(map(len, found)), sum(target.startswith("socket:") for some in found for target in some)

    def network(self, container_id: str, pid: int) -> tuple[Interface, ...]:
        """Read the interfaces that a process sees; none when it is not the container's."""
        folder = self._proc / str(pid)
        try:
            content = (folder / "net/dev").read_bytes()
            # Looked at after: what was read is the container's if the process still is.
            return cgroupstats.interfaces(content) if container_id in (folder / "cgroup").read_text() else ()
        except OSError:
            return ()


def _contents(folder: str, names: tuple[str, ...]) -> dict[str, bytes]:
    found = {}
    for name in names:
        try:
            descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found[name] = os.read(descriptor, _MOST_BYTES)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return found


def _targets(folder: str) -> list[str]:
    """Return what the open files of a process are; none when it has ended or is not ours to look at."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.append(os.readlink(entry.path))  # noqa: PTH115  # one may be closed meanwhile
    except OSError:
        pass
    return found
