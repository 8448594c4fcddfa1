"""Read what the kernel is and has."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from cli.doctor.facts import KernelFacts
from cli.doctor.gather import host

_CGROUPS = Path("/sys/fs/cgroup")
_INOTIFY = Path("/proc/sys/fs/inotify")
_NETLINK_NETFILTER = 12
# NFT_MSG_GETGEN of subsystem nf_tables (10), asked with NLM_F_REQUEST.
_GET_GENERATION = struct.pack("=IHHIIBBH", 20, (10 << 8) | 16, 1, 1, 0, 0, 0, 0)
_NLMSG_ERROR = 2
_EPERM = -1


def gather() -> KernelFacts:
    """Look at the kernel."""
    kind, controllers = cgroups()
    file_systems = (host.text("/proc/filesystems") or "").split()
    return KernelFacts(
        release=os.uname().release,
        cgroups=kind,
        controllers=controllers,
        overlay="overlay" in file_systems,
        inotify_instances=host.number(_INOTIFY / "max_user_instances"),
        inotify_watches=host.number(_INOTIFY / "max_user_watches"),
        nf_tables=nf_tables(),
    )


def cgroups() -> tuple[str, frozenset[str]]:
    """Return `v1`, `hybrid`, `v2` or nothing, and the controllers."""
    unified = host.text(_CGROUPS / "cgroup.controllers")
    if unified is not None:
        return "v2", frozenset(unified.split())
    enabled = enabled_controllers(host.text("/proc/cgroups") or "")
    mounted = frozenset(name for name in enabled if (_CGROUPS / name).is_dir())
    if not mounted:
        return "", frozenset()
    return ("hybrid" if (_CGROUPS / "unified").is_dir() else "v1"), mounted


def enabled_controllers(table: str) -> frozenset[str]:
    """Read /proc/cgroups: name, hierarchy, count, enabled."""
    rows = [line.split() for line in table.splitlines() if line and not line.startswith("#")]
    return frozenset(row[0] for row in rows if len(row) == 4 and row[3] == "1")


def nf_tables() -> bool | None:
    """Ask the kernel for the generation of its rules; None when this user may not ask."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as link:
            link.settimeout(2)
            link.bind((0, 0))
            link.send(_GET_GENERATION)
            answer = link.recv(4096)
    except PermissionError:
        return None
    except OSError:
        return False
    kind = struct.unpack_from("=IH", answer)[1]
    if kind != _NLMSG_ERROR:
        return True
    return None if struct.unpack_from("=i", answer, 16)[0] == _EPERM else False
