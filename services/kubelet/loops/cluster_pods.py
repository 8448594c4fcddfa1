"""The pods that a Kubernetes API server has bound to this node. Implements `PodSource`.

- A pod is kept on disk before anyone works on it, so that it comes back without the API.
- None is listed before our Node is known: a refusal by the wrong labels would be final.
- One with a field that we cannot honour, or that the node cannot take, is not run: it has failed,
  and its status says why.
- One that the API says has ended, and that never ran here, is not run again.
- One that is gone from the API is stopped at once, then forgotten. One that was asked to stop is
  deleted at the API, by its UID, when nothing of it is left.
- Mirror pods are never run: they show static pods.

Source: the kubelet's `config/apiserver.go`, `pod_workers.go`, `status_manager.go`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from services.common import failpoints
from services.common.clock import Clock, unix_nanoseconds
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json, Selection
from services.common.logs import get_logger
from services.common.reflector import Reflector
from services.common.replica import Change
from services.common.watch import Bookmark, WatchHub
from services.common.workqueue import WorkQueue
from services.kubelet.core import kube_pod
from services.kubelet.core.kube_pod import ClusterPod
from services.kubelet.core.kube_resources import PODS
from services.kubelet.core.model import Pod, PodUid
from services.kubelet.ports import ClusterMemory

log = get_logger(__name__)
_ACCEPT = failpoints.step("cluster.pod.accept")
_DELETE = failpoints.step("cluster.pod.delete")
# How long pods of a run before wait for the API at the start, which may have deleted them.
PATIENCE_SECONDS = 10.0
_FAREWELLS = 8


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a pod is not run, as its status says."""

    reason: str
    message: str


Admit = Callable[[Pod, Sequence[Pod]], Refused | None]
Report = Callable[[PodUid], Awaitable[None]]


class ClusterPods:
    """The pods of one node. `admit` says whether it takes one beside the others."""

    def __init__(
        self, api: KubeApi, node: str, cache: ClusterMemory, clock: Clock, *, admit: Admit, run_id: str
    ) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._admit = admit
        self.hub: WatchHub[Pod] = WatchHub(run_id)
        # Told each pod whose status at the API may need our word, or that was forgotten, and each mirror
        # that moved.
        self.on_moved: Callable[[PodUid], None] = lambda uid: None
        self.on_mirror: Callable[[], None] = lambda: None
        self.on_report: Report = _tell_nobody
        self.on_refused: Callable[[Pod, Refused], None] = lambda pod, why: None
        # Returns once the Node is known, whose labels and taints decide what it takes.
        self.node_known: Callable[[], Awaitable[object]] = _known_already
        self._known: dict[PodUid, ClusterPod] = {}
        self._mirrors: dict[PodUid, ClusterPod] = {}
        self._refused: dict[PodUid, Refused] = {}
        self._old: set[PodUid] = set()
        self._gone: set[PodUid] = set()
        self._new: set[PodUid] = set()
        self._late: dict[PodUid, ClusterPod] = {}
        # The newest change of each pod that is still to be taken, and when each pod was heard of.
        self._changes: dict[str, Change[ClusterPod]] = {}
        self._heard_ns: dict[PodUid, int] = {}
        self._wake = asyncio.Event()
        self._listed = False
        self._released = asyncio.Event()
        self._farewells = WorkQueue(clock)
        self.reflector: Reflector[ClusterPod] = Reflector(
            api,
            Selection(PODS, field_selector=f"spec.nodeName={node}"),
            read=kube_pod.read,
            tell=self._hear,
            clock=clock,
        )

    # What others ask.

    def pods(self) -> Sequence[Pod]:
        """Return every pod that is run here, those being deleted too."""
        return [*self.hub.snapshot().values(), *(known.pod for known in self._late.values())]

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one pod; None when it is gone, or not run."""
        return self.hub.get(uid)

    def take_new(self, uid: PodUid) -> bool:
        """Tell, once, that a pod came by an event of this run: no runtime can have anything of its UID."""
        if uid not in self._new:
            return False
        self._new.discard(uid)
        return True

    async def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield each pod that changed; those of a run before once the API has answered or is given up on."""
        async for change in self.hub.watch():
            if not isinstance(change, Bookmark):
                yield PodUid(change.key), change.traceparent

    async def finalize(self, uid: PodUid) -> None:
        """Tell the API the last status of a pod and that it is over; then forget it.

        Raises `TripodError` while the API does not answer: it is tried again.
        """
        if uid not in self._gone:
            await self.on_report(uid)
            await self._delete(uid)
        await self._cache.keep_pods({}, [uid])
        self.hub.delete(uid)
        self._forget(uid)

    def certain(self) -> bool:
        """Tell whether the API has told this run what is wanted here: only then is anything else not."""
        return self._listed

    def at_api(self, uid: PodUid) -> ClusterPod | None:
        """Return a pod as the API has it; the mirror of a static one. None when it has none."""
        return self._known.get(uid) or self._mirrors.get(uid)

    def refused(self, uid: PodUid) -> Refused | None:
        """Return why a pod is not run; None for one that is."""
        return self._refused.get(uid)

    def mirrors(self) -> Mapping[PodUid, ClusterPod]:
        """Return the mirror pods of this node, by the UID of the static pod that each shows."""
        return dict(self._mirrors)

    def bodies(self) -> Collection[Json]:
        """Return the pods that are run here as the API wrote them."""
        run = [known for uid, known in self._known.items() if self.hub.get(uid) is not None]
        return [known.body for known in (*run, *self._late.values())]

    # The work.

    def remember(self, kept: Mapping[PodUid, Json]) -> None:
        """Take the pods of a run before."""
        for uid, body in kept.items():
            try:
                known = kube_pod.read(body)
            except (ValueError, KeyError, TypeError) as error:
                log.error("Could not read a kept pod", pod_uid=uid, error=str(error))
                continue
            if not known.supported:
                # An older or newer release took it; only the API can say more.
                log.error("Cannot run a kept pod", pod_uid=uid, why=known.unsupported())
                continue
            self._old.add(uid)
            self._late[uid] = known

    async def run(self) -> None:
        """Follow the API until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._farewells.run(self._say_farewell, workers=_FAREWELLS))
            group.create_task(self._release_in_time())
            await self._take_all()

    async def _follow(self) -> None:
        await self.node_known()
        await self.reflector.run()

    def received_ns(self, uid: PodUid) -> int:
        """Return when the API told of a pod, in nanoseconds; 0 for one of a run before."""
        return self._heard_ns.get(uid, 0)

    def _hear(self, changes: Sequence[Change[ClusterPod]]) -> None:
        now = unix_nanoseconds(self._clock.now())
        for change in changes:
            self._changes[change.uid] = change
            if change.before is None and change.after is not None and not change.after.mirror:
                self._heard_ns[PodUid(change.uid)] = now
        self._wake.set()

    async def _release_in_time(self) -> None:
        """Run the pods of a run before when the API does not answer in time."""
        async with asyncio.TaskGroup() as group:
            synced = group.create_task(self.reflector.synced.wait())
            slept = group.create_task(self._clock.sleep(PATIENCE_SECONDS))
            await asyncio.wait({synced, slept}, return_when=asyncio.FIRST_COMPLETED)
            synced.cancel()
            slept.cancel()
        if not self.reflector.synced.is_set():
            log.warning("Started the pods of before without the API server", pod_count=len(self._late))
            for uid, known in self._late.items():
                self._known.setdefault(uid, known)
                self.hub.upsert(uid, known.pod)
            self._late.clear()
            await self.reflector.synced.wait()
        self._wake.set()

    async def _take_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = list(self._changes.values())
            self._changes.clear()
            first = self.reflector.synced.is_set() and not self._listed
            absent = self._absent() if first else []
            self._gone.update(absent)
            await self._take(batch, first=first)
            if first:
                await self._drop(absent)
                self._listed = True
                self.on_mirror()

    def _absent(self) -> list[PodUid]:
        """Return what a run before had and the first list has not: it is over."""
        present = {known.uid for known in self.reflector.values().values()}
        return [PodUid(uid) for uid in (*self._late, *self.hub.snapshot()) if uid not in present]

    async def _drop(self, absent: Sequence[PodUid]) -> None:
        for uid in absent:
            known = self._late.pop(uid, None) or self._known.get(uid)
            if known is not None:
                await self._removed(known)
        self._late.clear()

    async def _take(self, batch: Sequence[Change[ClusterPod]], *, first: bool) -> None:
        """Decide on each pod; keep the accepted ones; then show them."""
        shown: dict[PodUid, Pod] = {}
        kept: dict[PodUid, Json] = {}
        for change in sorted(batch, key=_age) if first else batch:
            known = change.after or change.before
            assert known is not None, "a change has one of both"
            if known.mirror:
                self._take_mirror(known, gone=change.after is None)
            elif change.after is None:
                shown.pop(known.uid, None)
                kept.pop(known.uid, None)
                await self._removed(known)
            elif (pod := self._accepted(known, shown)) is not None:
                if known.uid not in self._old and not first:
                    self._new.add(known.uid)
                self._old.add(known.uid)
                shown[known.uid] = pod
                if known.supported:
                    # In any other form a run after this one would refuse it.
                    kept[known.uid] = known.body
        async with _ACCEPT:
            await self._cache.keep_pods(kept)
        await _ACCEPT.recorded()
        for uid, pod in shown.items():
            self._late.pop(uid, None)
            self._show(pod)
        for change in batch:
            if change.after is not None:
                self.on_moved(PodUid(change.uid))

    def _take_mirror(self, known: ClusterPod, *, gone: bool) -> None:
        shown = PodUid(known.mirror)
        present = self._mirrors.get(shown)
        if not gone:
            self._mirrors[shown] = known
            self.on_moved(shown)
        elif present is not None and present.uid == known.uid:
            del self._mirrors[shown]
        self.on_mirror()

    def _accepted(self, known: ClusterPod, shown: Mapping[PodUid, Pod]) -> Pod | None:
        """Return the pod to run; None for one that is not run, or goes on as it was."""
        uid = known.uid
        self._known[uid] = known
        runs = uid in self._late or self.hub.get(uid) is not None
        if uid in self._gone or (known.deletion_time is not None and not runs and uid not in self._old):
            self._farewells.add(uid)
            return None
        if not known.supported:
            if not runs:
                self._refuse(known, Refused(kube_pod.UNSUPPORTED, known.unsupported()))
                return None
            log.warning("Kept a pod as it was", pod_uid=uid, why=known.unsupported())
            before = self.hub.get(uid) or self._late[uid].pod
            # It goes on as it was; only its end must not be missed.
            return replace(
                before,
                deletion_time=known.deletion_time,
                deletion_grace_seconds=_grace(known) if known.deletion_time else None,
            )
        if runs or uid in self._old:
            return known.pod
        if known.ended or uid in self._refused:
            return None
        # Of what the API has no more it knows nothing; that is about to end.
        others = [*(pod for pod in self.pods() if pod.uid not in self._gone), *shown.values()]
        refused = self._admit(known.pod, others)
        if refused is not None:
            self._refuse(known, refused)
            return None
        return known.pod

    def _refuse(self, known: ClusterPod, why: Refused) -> None:
        if not known.ended and self._refused.get(known.uid) != why:
            log.warning(
                "Refused a pod", pod=f"{known.namespace}/{known.name}", reason=why.reason, message=why.message
            )
            self._refused[known.uid] = why
            self.on_refused(known.pod, why)

    def _show(self, pod: Pod) -> None:
        before = self.hub.get(pod.uid)
        if before is None or replace(before, revision=pod.revision, start_time=pod.start_time) != pod:
            self.hub.upsert(pod.uid, pod)

    async def _removed(self, known: ClusterPod) -> None:
        """Stop a pod that the API no longer has; forget one that is not run here."""
        uid = known.uid
        self._late.pop(uid, None)
        await self._cache.keep_pods({}, [uid])
        pod = self.hub.get(uid) or (known.pod if uid in self._old and known.supported else None)
        if pod is None:
            self._forget(uid)
            return
        self._gone.add(uid)
        stop = pod.deletion_time or self._clock.now()
        self.hub.upsert(uid, replace(pod, deletion_time=stop, deletion_grace_seconds=0))

    async def _say_farewell(self, key: str) -> None:
        """Delete a pod at the API that was asked to stop and of which nothing runs here."""
        uid = PodUid(key)
        if uid in self._known and uid not in self._gone:
            await self._delete(uid)
            self._forget(uid)

    async def _delete(self, uid: PodUid) -> None:
        known = self._known.get(uid)
        if known is None:
            return
        async with _DELETE:
            try:
                await self._api.delete(PODS, known.namespace, known.name, grace_seconds=0, uid=uid)
            except KubeApiError as error:
                # Gone, or another pod has its name by now.
                if not error.absent and not error.replaced:
                    raise
        await _DELETE.recorded()

    def _forget(self, uid: PodUid) -> None:
        self._known.pop(uid, None)
        self._refused.pop(uid, None)
        self._old.discard(uid)
        self._new.discard(uid)
        self._gone.discard(uid)
        self._heard_ns.pop(uid, None)
        self.on_moved(uid)


def _grace(known: ClusterPod) -> int | None:
    grace = known.body["metadata"].get("deletionGracePeriodSeconds")
    return grace if isinstance(grace, int) else None


def _age(change: Change[ClusterPod]) -> str:
    """Sort by creation, as the original admits pods that it finds at its start."""
    known = change.after or change.before
    assert known is not None, "a change has one of both"
    return str(known.body["metadata"].get("creationTimestamp") or "")


async def _tell_nobody(uid: PodUid) -> None:
    del uid


async def _known_already() -> None:
    return
