"""Tell a Kubernetes API server how its pods fare: one patch at a time for each, the newest status wins.

A status that the API has already is not sent. One that cannot be sent is tried again, with
back-off, or when an API that was away is back, until it is there or the pod is gone: nothing is
lost, and nothing overtakes.

Source: the kubelet's `status/status_manager.go`.
"""

from __future__ import annotations

import asyncio

from services.common import failpoints, telemetry
from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json
from services.common.logs import get_logger
from services.common.watch import Bookmark, Deleted, WatchHub
from services.common.workqueue import WorkQueue
from services.kubelet.core import kube_pod, kube_status
from services.kubelet.core.kube_pod import ClusterPod
from services.kubelet.core.kube_resources import PODS
from services.kubelet.core.model import PodUid
from services.kubelet.core.status import PodStatus
from services.kubelet.loops.cluster_pods import ClusterPods

log = get_logger(__name__)
_REPORT = failpoints.step("cluster.pod.report")
_WORKERS = 16


class StatusReporter:
    """Reports for one node. `statuses` are what the workers found, static pods' too."""

    def __init__(self, api: KubeApi, pods: ClusterPods, statuses: WatchHub[PodStatus], clock: Clock) -> None:
        self._api = api
        self._pods = pods
        self._statuses = statuses
        self._clock = clock
        self._queue = WorkQueue(clock)
        self._causes: dict[PodUid, str] = {}
        # What the API answered last, until a watch says something newer.
        self._answers: dict[PodUid, ClusterPod] = {}
        self._turns: dict[PodUid, asyncio.Lock] = {}

    async def run(self) -> None:
        """Report until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._catch_up())
            await self._queue.run(self._work, workers=_WORKERS)

    def look(self, uid: PodUid) -> None:
        """Compare a pod's status with the API's soon: the API's moved."""
        self._queue.add(uid)

    async def report(self, uid: PodUid) -> None:
        """Bring the newest status of a pod to the API. Raises `TripodError` when it does not get there."""
        async with self._turns.setdefault(uid, asyncio.Lock()):
            present = self._present(uid)
            if present is None:
                self._forget_api(uid)
                return
            after = self._wanted(uid, present)
            patch = None if after is None else kube_status.patch(present.uid, present.status, after)
            if patch is not None:
                await self._send(uid, present, patch)

    async def _follow(self) -> None:
        """Hear of each status."""
        while True:
            try:
                async for change in self._statuses.watch():
                    if isinstance(change, Deleted):
                        self._forget(PodUid(change.key))
                    elif not isinstance(change, Bookmark):
                        self._causes[PodUid(change.key)] = change.traceparent
                        self._queue.add(change.key)
            except TripodError as error:
                # Too slow for the hub's queue: it tells the present ones again.
                if error.code is not Code.ABORTED:
                    raise

    async def _catch_up(self) -> None:
        """Try all again at once when the API answers after it was silent."""
        while True:
            await self._api.recovery()
            for uid in self._statuses.snapshot():
                self._queue.add(uid)

    async def _work(self, key: str) -> None:
        uid = PodUid(key)
        cause = self._causes.get(uid, "")
        if not cause:
            with telemetry.unrecorded():
                await self.report(uid)
            return
        with telemetry.within(cause):
            await self.report(uid)

    def _present(self, uid: PodUid) -> ClusterPod | None:
        """Return the pod as the API had it last."""
        seen, answered = self._pods.at_api(uid), self._answers.get(uid)
        if seen is None or answered is None or answered.uid != seen.uid:
            return seen
        return answered if answered.revision > seen.revision else seen

    def _wanted(self, uid: PodUid, present: ClusterPod) -> Json | None:
        refused = self._pods.refused(uid)
        if refused is not None:
            return kube_status.refusal(
                refused.reason,
                refused.message,
                present.status,
                generation=present.generation,
                now=self._clock.now(),
            )
        status = self._statuses.get(uid)
        return None if status is None else kube_status.render(status, present.status)

    async def _send(self, uid: PodUid, present: ClusterPod, patch: dict[str, object]) -> None:
        try:
            async with _REPORT:
                answer = await self._api.patch(
                    PODS, present.namespace, present.name, patch, subresource="status"
                )
        except KubeApiError as error:
            if error.absent or error.replaced:
                # Gone, or another pod has its name by now: the watch will tell.
                return
            raise
        await _REPORT.recorded()
        self._keep(uid, answer)

    def _keep(self, uid: PodUid, answer: Json) -> None:
        try:
            self._answers[uid] = kube_pod.read(answer)
        except ValueError as error:
            log.warning("Could not read the API server's answer", pod_uid=uid, error=str(error))

    def _forget(self, uid: PodUid) -> None:
        self._causes.pop(uid, None)
        self._forget_api(uid)

    def _forget_api(self, uid: PodUid) -> None:
        for known in (self._answers, self._turns):
            known.pop(uid, None)
