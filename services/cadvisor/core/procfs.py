"""Values from /proc. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.cadvisor.core.flatfile import number, scaled
from services.cadvisor.core.model import CgroupLayout, Interface


def interfaces(content: bytes) -> tuple[Interface, ...]:
    """Read /proc/PID/net/dev, loopback left out."""
    found = []
    for line in content.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        words = rest.split()
        if len(words) < 16 or name.strip() == b"lo":
            continue
        values = [number(word) for word in words[:12]]
        found.append(
            Interface(
                name=name.strip().decode(errors="replace"),
                received_bytes=values[0],
                received_packets=values[1],
                receive_errors=values[2],
                receive_dropped=values[3],
                sent_bytes=values[8],
                sent_packets=values[9],
                send_errors=values[10],
                send_dropped=values[11],
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where cgroups are mounted: v1 controllers by name, and the v2 tree."""

    v1: dict[str, str]
    v2: str

    def layout(self) -> CgroupLayout:
        """Tell the layout."""
        if not self.v1:
            return CgroupLayout.V2
        return CgroupLayout.HYBRID if self.v2 else CgroupLayout.V1


def cgroup_mounts(content: bytes, root: str) -> Mounts:
    """Read /proc/PID/mountinfo: what is mounted at or below `root`.

    A controller is named after its mount point or the mount's options.
    """
    v1: dict[str, str] = {}
    v2 = ""
    for line in content.decode(errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3 or not (fields[4] + "/").startswith(root.rstrip("/") + "/"):
            continue
        if kinds[0] == "cgroup2":
            v2 = v2 or fields[4]
        elif kinds[0] == "cgroup":
            for controller in kinds[2].split(","):
                v1.setdefault(controller, fields[4])
    return Mounts(v1, v2)


def memory_info(content: bytes) -> dict[str, int]:
    """Read /proc/meminfo in bytes."""
    found: dict[str, int] = {}
    for line in content.splitlines():
        name, _, rest = line.partition(b":")
        words = rest.split()
        if words:
            found[name.decode(errors="replace")] = scaled(number(words[0]), 1024 if words[-1] == b"kB" else 1)
    return found


def disk_names(content: bytes) -> dict[tuple[int, int], str]:
    """Read the names of block devices from /proc/diskstats."""
    found = {}
    for line in content.splitlines():
        words = line.split()
        if len(words) > 3:
            found[number(words[0]), number(words[1])] = words[2].decode(errors="replace")
    return found
