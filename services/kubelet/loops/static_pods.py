"""The pods of the manifest directory on a node of a cluster, and the mirrors that show them there.

Static pods run whatever the API says. A mirror that is deleted is made again; one that shows
nothing any more, or something else, is deleted. `StaticPods` implements `PodSource`.

Source: the kubelet's `pod/pod_manager.go`, `pod/mirror_client.go`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.logs import get_logger
from services.kubelet.core import kube_mirror
from services.kubelet.core.kube_pod import ClusterPod
from services.kubelet.core.kube_resources import PODS
from services.kubelet.core.model import Pod, PodUid
from services.kubelet.loops.cluster_pods import ClusterPods
from services.kubelet.loops.interleaved import interleaved
from services.kubelet.ports import PodSource

log = get_logger(__name__)
_LOOK_SECONDS = 30.0
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 300.0


class StaticPods:
    """The local store's pods, called as in a cluster."""

    def __init__(self, store: PodSource, node: str) -> None:
        self._store = store
        self._node = node

    def pods(self) -> Sequence[Pod]:
        """Return every static pod."""
        return [kube_mirror.named(pod, self._node) for pod in self._store.pods()]

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one static pod."""
        found = self._store.pod(uid)
        return None if found is None else kube_mirror.named(found, self._node)

    def take_new(self, uid: PodUid) -> bool:
        """Tell, once, that a pod was made just now."""
        return self._store.take_new(uid)

    def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield each pod that changed."""
        return self._store.changes()

    async def finalize(self, uid: PodUid) -> None:
        """Forget a pod of which nothing is left."""
        await self._store.finalize(uid)


class Mirrors:
    """Keeps one mirror for each static pod. `node_uid` is that of our Node, "" before it is there."""

    def __init__(
        self,
        api: KubeApi,
        static: PodSource,
        pods: ClusterPods,
        clock: Clock,
        *,
        node: str,
        node_uid: Callable[[], str],
    ) -> None:
        self._api = api
        self._static = static
        self._pods = pods
        self._clock = clock
        self._node = node
        self._node_uid = node_uid
        self._wake = asyncio.Event()
        self._again: dict[PodUid, tuple[float, float]] = {}

    def look(self) -> None:
        """Compare soon."""
        self._wake.set()

    async def run(self) -> None:
        """Keep mirrors until cancelled; none is touched before the API has told what there is."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            while True:
                self._wake.clear()
                if self._pods.certain() and self._node_uid():
                    with telemetry.unrecorded():
                        await self._compare()
                await self._rest()

    async def _rest(self) -> None:
        due = [at - self._clock.monotonic() for at, _ in self._again.values()]
        async with asyncio.TaskGroup() as group:
            woken = group.create_task(self._wake.wait())
            slept = group.create_task(self._clock.sleep(max(0.1, min([_LOOK_SECONDS, *due]))))
            await asyncio.wait({woken, slept}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            slept.cancel()

    async def _follow(self) -> None:
        async for _ in self._static.changes():
            self._wake.set()

    async def _compare(self) -> None:
        wanted = {pod.uid: pod for pod in self._static.pods() if pod.deletion_time is None}
        present = self._pods.mirrors()
        for uid, shown in present.items():
            pod = wanted.get(uid)
            if pod is None or not kube_mirror.shows(shown, pod):
                await self._tried(uid, self._delete(shown))
        for uid, pod in wanted.items():
            if uid not in present:
                await self._tried(uid, self._make(pod))
        self._again = {uid: when for uid, when in self._again.items() if uid in wanted or uid in present}

    async def _tried(self, uid: PodUid, work: object) -> None:
        """Try, unless it failed and is not due again."""
        at, delay = self._again.get(uid, (0.0, _FIRST_RETRY_SECONDS))
        if at > self._clock.monotonic():
            work.close()  # type: ignore[attr-defined]  # a coroutine that is not run
            return
        try:
            await work  # type: ignore[misc]  # a coroutine made by the caller
            self._again.pop(uid, None)
        except TripodError as error:
            log.warning("Could not keep a mirror pod", pod_uid=uid, error=error.message, retry_seconds=delay)
            self._again[uid] = (self._clock.monotonic() + delay, min(_LAST_RETRY_SECONDS, delay * 2))

    async def _make(self, pod: Pod) -> None:
        seen = pod.creation_time or self._clock.now()
        body = kube_mirror.mirror(pod, node=self._node, node_uid=self._node_uid(), seen=seen)
        await self._api.create(PODS, pod.namespace, body)

    async def _delete(self, shown: ClusterPod) -> None:
        try:
            await self._api.delete(PODS, shown.namespace, shown.name, grace_seconds=0, uid=shown.uid)
        except KubeApiError as error:
            if not error.absent and not error.replaced:
                raise


class MergedPods:
    """Static pods and those of the cluster as one. Implements `PodSource`."""

    def __init__(self, static: PodSource, cluster: PodSource) -> None:
        self._static = static
        self._cluster = cluster

    def pods(self) -> Sequence[Pod]:
        """Return every pod of the node."""
        return [*self._static.pods(), *self._cluster.pods()]

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one pod."""
        return self._static.pod(uid) or self._cluster.pod(uid)

    def take_new(self, uid: PodUid) -> bool:
        """Tell, once, that a pod was made just now."""
        return self._static.take_new(uid) or self._cluster.take_new(uid)

    def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield each pod of either that changed."""
        return interleaved(self._static.changes(), self._cluster.changes())

    async def finalize(self, uid: PodUid) -> None:
        """Forget a pod of which nothing is left, at whichever has it."""
        owner = self._static if self._static.pod(uid) is not None else self._cluster
        await owner.finalize(uid)
