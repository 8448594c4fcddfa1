"""End pods that take more of the node's disk than they may.

Looked at every ten seconds, as the original does; only pods that limit something are measured. What cannot be
measured now ends nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.core import local_storage, volumes
from services.kubelet.core.local_storage import Taken
from services.kubelet.core.memory import Over
from services.kubelet.core.model import ContainerId, Pod, PodUid
from services.kubelet.core.status import PodStatus
from services.kubelet.ports import LogFiles, PodSource, Runtime

log = get_logger(__name__)
PERIOD_SECONDS = 10.0
Statuses = Callable[[], Mapping[str, PodStatus]]
End = Callable[[Pod, Over], None]


class EmptyDirs(Protocol):
    """Measures emptyDirs."""

    async def usage_bytes(self, uid: PodUid, name: str) -> int:
        """Return how much of the disk an emptyDir takes."""
        ...


class LocalStorage:
    """Watches over one node's disk. `end` is told of each pod that is over."""

    def __init__(
        self,
        source: PodSource,
        statuses: Statuses,
        runtime: Runtime,
        files: LogFiles,
        empty_dirs: EmptyDirs,
        *,
        clock: Clock,
        state_directory: Path,
        end: End,
    ) -> None:
        self._source = source
        self._statuses = statuses
        self._runtime = runtime
        self._files = files
        self._empty_dirs = empty_dirs
        self._clock = clock
        self._state = state_directory
        self._end = end

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                with telemetry.unrecorded():
                    await self.look()
            except TripodError as error:
                log.warning("Could not measure local storage", reason=error.reason, error=error.message)
            await self._clock.sleep(PERIOD_SECONDS)

    async def look(self) -> None:
        """Measure each pod that limits something, and end those that take too much. Raises `TripodError`."""
        statuses = self._statuses()
        limited = [pod for pod in self._source.pods() if local_storage.is_limited(pod)]
        running = [(p, s) for p in limited if (s := statuses.get(p.uid)) is not None and not s.terminal]
        if not running:
            return
        layers = await self._runtime.writable_layers()
        for pod, status in running:
            over = local_storage.over(pod, await self._taken(pod, status, layers))
            if over is not None:
                self._end(pod, over)

    async def _taken(self, pod: Pod, status: PodStatus, layers: Mapping[ContainerId, int]) -> Taken:
        containers = {}
        for container in status.every:
            folder = volumes.log_directory(self._state, pod) / container.name
            logs = sum((await self._files.sizes(folder)).values())
            containers[container.name] = logs + layers.get(ContainerId(container.container_id), 0)
        names = local_storage.on_disk(pod)
        return Taken(containers, {name: await self._empty_dirs.usage_bytes(pod.uid, name) for name in names})
