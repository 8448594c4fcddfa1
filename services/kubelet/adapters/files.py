"""Folders of pods on the node's disk. Implements the kubelet's `PodFiles`."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from services.common.errors import Code
from services.common.logs import get_logger
from services.kubelet.adapters import ownership
from services.kubelet.adapters.removal import remove_tree
from services.kubelet.adapters.volume_disk import VolumeDisk
from services.kubelet.core import volumes
from services.kubelet.core.audit import Disk
from services.kubelet.core.dns import NodeDns
from services.kubelet.core.hostname import Names, hosts_text
from services.kubelet.core.model import Pod, PodUid
from services.kubelet.errors import KubeletError

log = get_logger(__name__)
# Everyone may write in an emptyDir, as the kubelet has it: a pod may run as any user.
_VOLUME_MODE = 0o777
_RECORD_BYTES = 1 << 20


class DiskFiles:
    """Works under the state directory, whose path is the same on the host."""

    def __init__(self, state: Path, volume_disk: VolumeDisk) -> None:
        self._state = state
        self._volume_disk = volume_disk
        self._left: set[Path] = set()

    async def prepare(self, pod: Pod) -> None:
        """Make the folders of a pod's volumes."""
        await asyncio.to_thread(self._prepare, pod)

    def _prepare(self, pod: Pod) -> None:
        try:
            for directory in volumes.directories(self._state, pod):
                if not directory.exists():
                    directory.mkdir(parents=True)
                    directory.chmod(_VOLUME_MODE)
                if pod.spec.security.fs_group is not None:
                    # It was empty when it was made, so whatever is in it by now the group has already.
                    ownership.give(directory, pod.spec.security.fs_group, on_root_mismatch=True)
            volumes.pod_directory(self._state, pod.uid).mkdir(parents=True, exist_ok=True)
            hosts = volumes.hosts_file(self._state, pod.uid)
            if not hosts.exists():
                hosts.write_text(hosts_text(Names(""), ()))
        except OSError as error:
            raise KubeletError(
                f"Cannot make the folders of pod/{pod.name}: {error}",
                code=Code.UNAVAILABLE,
                reason="VOLUME_FAILED",
            ) from error

    async def write_hosts(self, pod: Pod, text: str) -> None:
        """Write a pod's /etc/hosts in place: containers hold the file itself."""
        await asyncio.to_thread(self._write_hosts, volumes.hosts_file(self._state, pod.uid), text)

    def _write_hosts(self, path: Path, text: str) -> None:
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    async def node_hosts(self) -> str:
        """Return the node's own /etc/hosts."""
        return await asyncio.to_thread(_text, Path("/etc/hosts"))

    async def recall(self, uid: PodUid) -> str:
        """Return what was last remembered of a pod."""
        return await asyncio.to_thread(self._recall, volumes.record_file(self._state, uid))

    def _recall(self, path: Path) -> str:
        try:
            return path.read_text() if path.stat().st_size <= _RECORD_BYTES else ""
        except (OSError, ValueError):
            return ""

    async def remember(self, uid: PodUid, text: str) -> None:
        """Keep a text with a pod: replaced whole, so that a kill leaves the old one or the new one."""
        await asyncio.to_thread(self._remember, volumes.record_file(self._state, uid), text)

    def _remember(self, path: Path, text: str) -> None:
        if path.parent.is_dir():
            fresh = path.with_name(f"{path.name}.new")
            fresh.write_text(text)
            fresh.chmod(0o600)
            fresh.replace(path)

    async def remove(self, pod: PodUid) -> None:
        """Remove everything of a pod but its logs: what is mounted for it first."""
        await self._volume_disk.release(pod)
        await asyncio.to_thread(self._remove, volumes.pod_directory(self._state, pod))

    async def remove_logs(self, pod: Pod) -> None:
        """Remove a pod's logs."""
        await asyncio.to_thread(self._remove, volumes.log_directory(self._state, pod))

    async def remove_orphan(self, uid: PodUid) -> None:
        """Remove everything of a pod that nobody knows any more, its logs too."""
        await self.remove(uid)
        await asyncio.to_thread(self._remove_logs, uid)

    def _remove_logs(self, uid: PodUid) -> None:
        root = volumes.log_root(self._state)
        for name in _names(root):
            if _log_owner(name) == uid:
                self._remove(root / name)

    def _remove(self, path: Path) -> None:
        """Remove a folder, across no mount; what had to be left is told once."""
        left = remove_tree(path)
        if left and path not in self._left:
            log.warning("Left files of a pod", path=str(path), left=dict(list(left.items())[:10]))
        (self._left.add if left else self._left.discard)(path)

    async def known(self) -> set[PodUid]:
        """Return the pods that have folders."""
        return await asyncio.to_thread(self._known)

    async def logged(self) -> set[PodUid]:
        """Return the pods that have folders of logs."""
        names = await asyncio.to_thread(_names, volumes.log_root(self._state))
        return {PodUid(uid) for uid in map(_log_owner, names) if uid}

    async def disk(self) -> Disk:
        """List what lies in the state directory."""
        mounts = await self._volume_disk.mounts()
        return await asyncio.to_thread(self._disk, mounts)

    def _disk(self, mounts: list[str]) -> Disk:
        return Disk(
            pod_folders=sorted(self._known()),
            log_folders=sorted(_names(volumes.log_root(self._state))),
            mounts=mounts,
        )

    def _known(self) -> set[PodUid]:
        return {PodUid(name) for name in _names(self._state / "pods")}


def _log_owner(name: str) -> str:
    """Return the UID in the name of a pod's log folder; "" for a folder of somebody else's."""
    parts = name.split("_")
    return parts[2] if len(parts) == 3 else ""


def _names(root: Path) -> list[str]:
    return os.listdir(root) if root.is_dir() else []  # noqa: PTH208  # names only


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def resolver(path: Path = Path("/etc/resolv.conf")) -> NodeDns:
    """Read the node's resolver; servers on loopback are of use to pods on the host's network alone."""
    servers: list[str] = []
    found = NodeDns()
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            servers.append(words[1])
        elif len(words) > 1 and words[0] == "search":
            found = replace(found, searches=tuple(words[1:]))
        elif len(words) > 1 and words[0] == "options":
            found = replace(found, options=tuple(words[1:]))
    remote = tuple(server for server in servers if not server.startswith(("127.", "::1")))
    return replace(found, servers=remote, own_servers=tuple(servers))
