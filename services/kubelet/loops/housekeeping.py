"""Remove what no pod of the source owns: pods at the runtime, and folders, those of logs too.

Only on complete, fresh knowledge of both sides: an error removes nothing. A pod is
an orphan when two looks in a row find it so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from services.common import failpoints, telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.core.model import PodUid
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.ports import PodFiles, PodSource, Runtime

log = get_logger(__name__)
_ORPHAN = failpoints.step("orphan.remove")
PERIOD_SECONDS = 10.0
_AGAIN_SECONDS = 3.0
_GRACE_SECONDS = 2


class Housekeeper:
    """Cleans up for one node, while the source is `certain` of what is wanted."""

    def __init__(
        self,
        source: PodSource,
        runtime: Runtime,
        files: PodFiles,
        clock: Clock,
        *,
        certain: Callable[[], bool] = lambda: True,
    ) -> None:
        self._certain = certain
        self._source = source
        self._runtime = runtime
        self._files = files
        self._clock = clock
        self._suspects: set[PodUid] = set()
        self._spared: frozenset[PodUid] = frozenset()

    def spare(self, uids: Collection[PodUid]) -> None:
        """Leave pods alone that a lost store could not take back: nobody can tell whether they are wanted."""
        self._spared = frozenset(uids)

    async def run(self) -> None:
        """Clean up again and again, sooner when something is suspected."""
        while True:
            try:
                with telemetry.unrecorded():
                    await self.clean()
            except TripodError as error:
                log.warning("Could not clean up", reason=error.reason, error=error.message)
            await self._clock.sleep(_AGAIN_SECONDS if self._suspects else PERIOD_SECONDS)

    async def clean(self) -> None:
        """Remove the orphans that the look before found already."""
        if not self._certain():
            self._suspects = set()
            return
        listed = await self._runtime.list_pods()
        # A runtime may write on what a killed kubelet had asked for: its logs come after the pod has gone.
        folders = await self._files.known() | await self._files.logged()
        owned = {pod.uid for pod in self._source.pods()}
        orphans = {*listed, *folders} - owned - self._spared
        for uid in sorted(orphans & self._suspects):
            async with _ORPHAN:
                if uid in listed:
                    await self._remove(listed[uid])
                await self._files.remove_orphan(uid)
            await _ORPHAN.recorded()
        self._suspects = orphans

    async def _remove(self, pod: ObservedPod) -> None:
        log.info("Removed a pod that nobody wants", pod=f"{pod.namespace}/{pod.name}", pod_uid=pod.uid)
        for container in pod.containers:
            if container.state in (RuntimeState.RUNNING, RuntimeState.UNKNOWN):
                await self._runtime.stop_container(container.id, _GRACE_SECONDS)
        for sandbox in pod.sandboxes:
            await self._runtime.stop_sandbox(sandbox.id)
            await self._runtime.remove_sandbox(sandbox.id)
        for container in pod.homeless():
            await self._runtime.remove_container(container.id)
