"""Last words of containers, in memory."""

from __future__ import annotations

from services.kubelet.core.model import Container, Pod, PodUid
from services.kubelet.core.observed import ObservedContainer


class FakeLastWords:
    """Implements the kubelet's `LastWords`: containers say what a test puts in `said`."""

    def __init__(self) -> None:
        self.prepared: list[tuple[PodUid, str, int]] = []
        self.said: dict[tuple[PodUid, str, int], str] = {}

    async def prepare(self, pod: Pod, container: Container, attempt: int) -> None:
        """Note it."""
        self.prepared.append((pod.uid, container.name, attempt))

    async def read(self, pod: Pod, container: Container, ended: ObservedContainer) -> str:
        """Return what was said."""
        return self.said.get((pod.uid, ended.name, ended.attempt), "")
