"""Folders of pods, in memory."""

from __future__ import annotations

from services.kubelet.core.model import Pod, PodUid


class FakeFiles:
    """Implements the kubelet's `PodFiles`."""

    def __init__(self) -> None:
        self.folders: set[PodUid] = set()
        self.hosts: dict[PodUid, str] = {}
        self.records: dict[PodUid, str] = {}

    async def prepare(self, pod: Pod) -> None:
        """Make a folder."""
        self.folders.add(pod.uid)

    async def write_hosts(self, pod: Pod, text: str) -> None:
        """Keep the text."""
        self.hosts[pod.uid] = text

    async def node_hosts(self) -> str:
        """Return a node's file."""
        return "127.0.0.1\tlocalhost\n"

    async def remove(self, pod: PodUid) -> None:
        """Remove a folder."""
        self.folders.discard(pod)
        self.records.pop(pod, None)

    async def recall(self, uid: PodUid) -> str:
        """Return a text."""
        return self.records.get(uid, "")

    async def remember(self, uid: PodUid, text: str) -> None:
        """Keep a text with a folder."""
        if uid in self.folders:
            self.records[uid] = text

    async def remove_logs(self, pod: Pod) -> None:
        """Do nothing: there are no logs."""

    async def remove_orphan(self, uid: PodUid) -> None:
        """Remove a folder."""
        await self.remove(uid)

    async def logged(self) -> set[PodUid]:
        """Return none: there are no logs."""
        return set()

    async def known(self) -> set[PodUid]:
        """Return the folders."""
        return set(self.folders)
