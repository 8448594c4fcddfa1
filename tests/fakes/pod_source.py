"""Pods of values, for those who follow a source of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from services.common.watch import Bookmark, WatchHub
from services.kubelet.core.model import Pod, PodUid


class ValueSource:
    """Tests change `hub`. Obeys `PodSource`."""

    def __init__(self, *pods: Pod) -> None:
        self.hub: WatchHub[Pod] = WatchHub("run")
        for pod in pods:
            self.hub.upsert(pod.uid, pod)

    def pods(self) -> Sequence[Pod]:
        """Return every pod."""
        return list(self.hub.snapshot().values())

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one pod."""
        return self.hub.get(uid)

    def take_new(self, uid: PodUid) -> bool:
        """Tell that none is new."""
        return False

    async def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield each change."""
        async for change in self.hub.watch():
            if not isinstance(change, Bookmark):
                yield PodUid(change.key), ""

    async def finalize(self, uid: PodUid) -> None:
        """Forget a pod."""
        self.hub.delete(uid)
