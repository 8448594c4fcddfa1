"""Rotate the logs of running containers by size, and remove those that nobody can read any more.

The file is moved away first, then the runtime is told to open its path anew; until
then it writes into the moved file, so no line is lost between. A container that
ended meanwhile gets its file back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from services.common import failpoints, telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.core import log_files, volumes
from services.kubelet.core.log_files import LogLimits
from services.kubelet.core.model import ContainerId, Pod, PodUid
from services.kubelet.core.status import ContainerStatus, PodStatus, StatePhase
from services.kubelet.ports import LogFiles, PodSource, Runtime

log = get_logger(__name__)
PERIOD_SECONDS = 1.0
_ROTATE = failpoints.step("pod.log.rotate")
_REOPEN = failpoints.step("pod.log.reopen")
Statuses = Callable[[], Mapping[str, PodStatus]]


class LogRotator:
    """Rotates for one node, by what its pods' statuses say."""

    def __init__(
        self,
        source: PodSource,
        statuses: Statuses,
        runtime: Runtime,
        files: LogFiles,
        *,
        clock: Clock,
        state_directory: Path,
        limits: LogLimits,
    ) -> None:
        self._source = source
        self._statuses = statuses
        self._runtime = runtime
        self._files = files
        self._clock = clock
        self._state = state_directory
        self._limits = limits
        self._cared: dict[ContainerId, Path] = {}

    async def run(self) -> None:
        """Look every second, for ever."""
        while True:
            await self.look()
            await self._clock.sleep(PERIOD_SECONDS)

    async def look(self) -> None:
        """Rotate what is too large now; one that cannot be rotated keeps no other from it.

        A folder is listed when its container is new to us or its log too large, so that
        a second in which nothing happens costs a look at each size alone.
        """
        found = {ContainerId(status.container_id): (pod, status) for pod, status in self._containers()}
        new = found.keys() - self._cared.keys()
        self._cared = {key: self._cared.get(key) or self._active(*found[key]) for key in found}
        large = await self._files.oversized(list(self._cared.values()), self._limits.file_bytes)
        for key, (pod, status) in found.items():
            if key not in new and self._cared[key] not in large:
                continue
            try:
                with telemetry.unrecorded():
                    await self._care(pod, status)
            except TripodError as error:
                log.warning(
                    "Could not rotate a log",
                    pod=f"{pod.namespace}/{pod.name}",
                    container=status.name,
                    reason=error.reason,
                    error=error.message,
                )

    def _containers(self) -> Iterator[tuple[Pod, ContainerStatus]]:
        statuses = self._statuses()
        for pod in self._source.pods():
            status = statuses.get(PodUid(pod.uid))
            if status is not None:
                yield from ((pod, container) for container in status.every if container.container_id)

    def _active(self, pod: Pod, status: ContainerStatus) -> Path:
        return volumes.log_directory(self._state, pod) / volumes.log_path(status.name, status.restart_count)

    async def _care(self, pod: Pod, status: ContainerStatus) -> None:
        active = self._active(pod, status)
        sizes = await self._files.sizes(active.parent)
        for name in log_files.outlived(sizes, status.restart_count):
            await self._files.remove(active.parent / name)
        for name in log_files.surplus(sizes, active.name, self._limits):
            await self._files.remove(active.parent / name)
        running = status.state.phase is StatePhase.RUNNING
        if running and sizes.get(active.name, 0) >= self._limits.file_bytes:
            await self._rotate(active, ContainerId(status.container_id))

    async def _rotate(self, active: Path, container: ContainerId) -> None:
        target = active.with_name(log_files.rotated_name(active.name, self._clock.now()))
        async with _ROTATE:
            await self._files.move(active, target)
        await _ROTATE.recorded()
        try:
            async with _REOPEN:
                await self._runtime.reopen_log(container)
        except TripodError:
            await self._files.move(target, active)
            raise
        await _REOPEN.recorded()
