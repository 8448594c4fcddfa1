"""Folders of pods, in memory."""

from __future__ import annotations

from services.kubelet.core.model import Pod, PodUid


class FakeFiles:
    """Implements the kubelet's `PodFiles`."""

    def __init__(self) -> None:
        self.folders: set[PodUid] = set()
        self.hosts: dict[PodUid, str] = {}

    async def prepare(self, pod: Pod) -> None:
        """Make a folder."""
        self.folders.add(pod.uid)

    async def write_hosts(self, pod: Pod, text: str) -> None:
        """Keep the text."""
        self.hosts[pod.uid] = text

    async def remove(self, pod: PodUid) -> None:
        """Remove a folder."""
        self.folders.discard(pod)

    async def remove_logs(self, pod: Pod) -> None:
        """Do nothing: there are no logs."""

    async def known(self) -> set[PodUid]:
        """Return the folders."""
        return set(self.folders)
