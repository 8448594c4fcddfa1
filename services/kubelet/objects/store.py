"""The objects of a standalone node: validated, completed, stored, watched.

One writer at a time; readers see frozen values in memory. A change is written to
the file first, then shown, so what anyone has seen survives a kill. Implements the
kubelet's `PodSource`, `ServiceSource` and `ObjectDeleter`.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import FieldViolation
from services.common.logs import get_logger
from services.common.watch import Bookmark, WatchHub
from services.kubelet.core import manifest, render, update
from services.kubelet.core.admission import Refusal
from services.kubelet.core.allocate import Ranges, Taken, allocate
from services.kubelet.core.manifest import Draft
from services.kubelet.core.manifest_service import HEADLESS, ServiceDraft
from services.kubelet.core.model import (
    Namespace,
    ObjectKey,
    Pod,
    PodSpec,
    PodUid,
    Service,
    ServiceAccount,
)
from services.kubelet.errors import ManifestError, ObjectTerminatingError, StoreError, StoreFullError
from services.kubelet.objects import config
from services.kubelet.objects.backup import Backup
from services.kubelet.objects.config import DEFAULT, ConfigObject
from services.kubelet.objects.database import Database
from services.kubelet.objects.schema import Row

log = get_logger(__name__)
T = TypeVar("T")
_APPLY = failpoints.step("store.apply")
_DELETE = failpoints.step("store.delete")
_FINALIZE = failpoints.step("store.finalize")
_MAINTAIN_SECONDS = 5.0
StoredObject = Pod | Service | ConfigObject
# Says why a node does not take a pod beside the others that it has.
Admit = Callable[[Pod, Sequence[Pod]], Refusal | None]


class Result(Enum):
    """What applying did with an object."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Applied:
    """One object of a manifest and what was done with it."""

    value: StoredObject
    result: Result

    @property
    def changed(self) -> bool:
        """Whether the object was not as the manifest says."""
        return self.result is not Result.UNCHANGED


@dataclass(frozen=True, slots=True)
class Entry:
    """An object and the file it came from; the origin is empty for one that was applied."""

    value: StoredObject
    origin: str = ""


@dataclass(frozen=True, slots=True)
class _Change:
    """What one apply would do."""

    upserts: tuple[Entry, ...]
    terminating: tuple[Entry, ...]
    deletes: tuple[ObjectKey, ...]
    applied: tuple[Applied, ...]


class ObjectStore:
    """Every object of the node. `open` first; belongs to one event loop.

    A new pod is stored when `admit` takes it; without `admit`, nobody runs it here, so each is.
    """

    def __init__(
        self, path: Path, ranges: Ranges, clock: Clock, *, run_id: str, admit: Admit | None = None
    ) -> None:
        self._path = path
        self._database = Database(path)
        self._backup = Backup(path.with_name(f"{path.name}.backup.json"))
        self._backed_up = 0
        self._fault = ""
        self._full = False
        self._settled = True
        self._unread: tuple[Row, ...] = ()
        self._restored: set[str] = set()
        self.lost = ""
        self._ranges = ranges
        self._clock = clock
        self._admit = admit
        self._entries: dict[ObjectKey, Entry] = {}
        self._revision = 0
        self._lock = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._new: set[PodUid] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="objects")
        self.pod_hub: WatchHub[Pod] = WatchHub(run_id)
        self.service_hub: WatchHub[Service] = WatchHub(run_id)
        # By `str(ObjectKey)`: what pods name and bring in.
        self.config_hub: WatchHub[ConfigObject] = WatchHub(run_id)

    @property
    def revision(self) -> int:
        """The last revision: that of the newest change."""
        return self._revision

    async def open(self) -> None:
        """Read the file. Raises `StoreError` where the disk does not let us.

        A file that cannot be trusted, or that is older than its copy, is set aside and
        the copy read instead. `lost` then says why; `restore` adds what the runtime knows
        beyond the copy, and `settle` ends the rebuild. A kill in between begins it anew.
        """
        stamp = self._stamp()
        opened = await self._in_thread(lambda: self._database.open(stamp=stamp))
        copied, copy_revision = await self._read_copy(stamp, needed=bool(opened.lost))
        if copy_revision > opened.revision and not opened.lost:
            why = f"it lost changes: its copy is of revision {copy_revision}, it of {opened.revision}"
            opened = await self._in_thread(lambda: self._database.doubt(why, stamp=stamp))
        self.lost, self._settled = opened.lost, not opened.lost
        newer = copy_revision > opened.revision
        rows, self._revision = (copied, copy_revision) if newer else (opened.rows, opened.revision)
        if newer or opened.aside:
            log.error(
                "Lost the object store", why=opened.lost, set_aside=opened.aside, from_backup=len(copied)
            )
            await self._in_thread(lambda: self._database.write(rows, [], self._revision))
        for entry in sorted(self._read(rows), key=lambda e: e.value.revision):
            self._show(entry, "")
        await self.maintain()

    async def _read_copy(self, stamp: str, *, needed: bool) -> tuple[Sequence[Row], int]:
        try:
            return await self._in_thread(lambda: self._backup.read(stamp=stamp))
        except OSError as error:
            if needed:
                raise StoreError(f"{self._path}, nor its copy", str(error)) from error
            log.warning("Could not read the copy of the object store", error=str(error))
            return [], 0

    def _stamp(self) -> str:
        return self._clock.now().strftime("%Y%m%dT%H%M%SZ")

    def _read(self, rows: Sequence[Row]) -> list[Entry]:
        """Read rows; one that cannot be read is told, and kept as it is."""
        entries = []
        for row in rows:
            try:
                entries.append(_entry(row))
            except (ValueError, KeyError) as error:
                self.lost = self.lost or f"{row.kind.lower()}/{row.name} cannot be read"
                self._unread = (*self._unread, row)
                log.error("Could not read an object", kind=row.kind, name=row.name, error=str(error))
        return entries

    async def restore(self, manifests: Mapping[PodUid, str]) -> list[Pod]:
        """Take pods in that run and that a lost store does not know, by the form of `render.portable`.

        Returns those that were taken in. A name that another pod has by now keeps that one.
        """
        async with self._lock:
            entries: list[Entry] = []
            for uid, text in manifests.items():
                entry = _portable_entry(uid, text)
                if entry is None:
                    log.error("Could not restore a pod", pod_uid=uid)
                elif entry.value.key not in self._entries and self.pod(uid) is None:
                    entries.append(entry)
            await self._commit(_Change(tuple(entries), (), (), ()), "", _APPLY)
            self._restored |= {entry.value.uid for entry in entries}
            return [e.value for e in entries if isinstance(e.value, Pod)]

    async def settle(self) -> None:
        """End a rebuild: from now on a pod that is not here is not wanted. Raises `StoreError`."""
        async with self._lock:
            if not self._settled:
                self._settled = True
                await self._guarded(self._database.settle)

    def fault(self) -> str | None:
        """Return why nothing new can be stored now; None when it can."""
        if self._fault:
            return f"The object store cannot be used: {self._fault}"
        return "The disk of the object store is full" if self._full else None

    async def maintain(self) -> None:
        """Do what can wait: mend the file, keep the reserve, copy the rows. Raises nothing."""
        async with self._lock:
            if self._fault:
                await self._mend(self._rows())
            full = not await self._in_thread(self._has_room)
            if full is not self._full:
                log.warning("Changed whether the object store's disk is full", full=full)
            self._full = full
            if self._revision != self._backed_up:
                await self._copy(self._rows())

    async def _mend(self, rows: Sequence[Row]) -> None:
        stamp, revision, settled = self._stamp(), self._revision, self._settled
        try:
            aside = await self._in_thread(
                lambda: self._database.reopen(rows, revision, stamp=stamp, settled=settled)
            )
        except StoreError as error:
            self._fault = error.why
        else:
            log.warning("Mended the object store", was=self._fault, set_aside=aside)
            self._fault = ""

    def _has_room(self) -> bool:
        reserve = self._database.reserve
        return reserve.keep() and reserve.room(prove=self._full)

    async def _copy(self, rows: Sequence[Row]) -> None:
        revision = self._revision
        try:
            await self._in_thread(lambda: self._backup.write(rows, revision))
            self._backed_up = revision
        except OSError as error:
            log.warning("Could not copy the object store", error=str(error))

    def _rows(self) -> list[Row]:
        """Render every object: some milliseconds, so only when it is wanted."""
        return [*self._unread, *(_row(entry) for entry in self._entries.values())]

    async def run(self) -> None:
        """Maintain the file for ever."""
        while True:
            await self.maintain()
            await self._clock.sleep(_MAINTAIN_SECONDS)

    async def close(self) -> None:
        """Close the file, once running changes are in it."""
        if self._changes:
            await asyncio.wait(set(self._changes), timeout=2.0)
        await self._in_thread(self._database.close)
        self._thread.shutdown(wait=True)

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    def get(self, key: ObjectKey) -> Entry | None:
        """Return one object; None when there is none."""
        return self._entries.get(key)

    def listing(self, kind: str, namespace: str = "") -> list[StoredObject]:
        """List the objects of a kind by namespace and name."""
        found = [
            e.value for k, e in self._entries.items() if k.kind == kind and namespace in ("", k.namespace)
        ]
        found += self._implied(kind, namespace)
        return sorted(found, key=lambda value: (value.namespace, value.name))

    def find(self, key: ObjectKey) -> StoredObject | None:
        """Return one object, also one that is there without being stored; None when there is none."""
        entry = self._entries.get(key)
        implied = (value for value in self._implied(key.kind, key.namespace) if value.name == key.name)
        return entry.value if entry else next(implied, None)

    def _implied(self, kind: str, namespace: str) -> list[StoredObject]:
        """Return what is there without being stored: namespaces in use, and each one's default account."""
        if kind == "Namespace":
            names = [name for name in self.namespaces() if ObjectKey(kind, "", name) not in self._entries]
            return [Namespace(_implied_uid(kind, "", name), name) for name in names]
        if kind != "ServiceAccount":
            return []
        places = [namespace] if namespace else self.namespaces()
        bare = [place for place in places if ObjectKey(kind, place, DEFAULT) not in self._entries]
        return [ServiceAccount(_implied_uid(kind, place, DEFAULT), place, DEFAULT) for place in bare]

    def pods(self) -> Sequence[Pod]:
        """Return every pod, those being deleted too."""
        return list(self.pod_hub.snapshot().values())

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one pod; None when it is gone."""
        return self.pod_hub.get(uid)

    def take_new(self, uid: PodUid) -> bool:
        """Tell, once, that a pod was made by a call to `apply` of this run."""
        if uid not in self._new:
            return False
        self._new.discard(uid)
        return True

    def service_account(self, namespace: str, name: str) -> ServiceAccount | None:
        """Return a ServiceAccount; `default` is in every namespace."""
        found = self.find(ObjectKey("ServiceAccount", namespace, name))
        return found if isinstance(found, ServiceAccount) else None

    def services(self) -> Sequence[Service]:
        """Return every service."""
        return list(self.service_hub.snapshot().values())

    def namespaces(self) -> list[str]:
        """Return the namespaces that were declared or hold something, and `default`."""
        declared = {key.name for key in self._entries if key.kind == "Namespace"}
        return sorted(declared | {key.namespace for key in self._entries if key.namespace} | {DEFAULT})

    async def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield the UID and the cause (a `traceparent`) of each pod that changed, the present ones first."""
        async for change in self.pod_hub.watch():
            if not isinstance(change, Bookmark):
                yield PodUid(change.key), change.traceparent

    async def apply(
        self, data: bytes, *, source: str = "", dry_run: bool = False, origin: str = "", traceparent: str = ""
    ) -> list[Applied]:
        """Apply a manifest: all of it, or nothing. What is stored already stays as it is.

        With an `origin` (a file) the manifest is all that the file holds: objects of it
        that are missing now are deleted, and a pod whose spec changed is replaced.
        Raises `ManifestError` with every fault, `ObjectTerminatingError`, `StoreError`.
        """
        drafts, faults = await asyncio.to_thread(manifest.read, data)
        if faults:
            raise ManifestError(faults, source)

        async def act() -> list[Applied]:
            async with self._lock:
                change = self._plan(drafts, source, origin)
                if dry_run:
                    return list(change.applied)
                await self._commit(change, traceparent, _APPLY)
                created = (item.value for item in change.applied if item.result is Result.CREATED)
                self._new |= {value.uid for value in created if isinstance(value, Pod)}
                return [self._as_stored(item) for item in change.applied]

        return await self._to_its_end(act())

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish a change although its caller goes: what is written must be shown."""
        task = asyncio.ensure_future(work)  # noqa: TID251  # `close` waits for it
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    def _as_stored(self, item: Applied) -> Applied:
        entry = self._entries.get(item.value.key)
        return replace(item, value=entry.value) if entry else item

    def _plan(self, drafts: Sequence[Draft], source: str, origin: str) -> _Change:
        faults: list[FieldViolation] = []
        upserts: list[Entry] = []
        terminating: list[Entry] = []
        applied: list[Applied] = []
        planned = dict(self._entries)
        for draft in drafts:
            present = self._entries.get(draft.key)
            taken_back = present is not None and present.value.uid in self._restored
            if present is not None and (owner := _owned_by_another(present, draft, origin, taken_back)):
                faults.append(owner)
                continue
            value, wrong = self._complete(draft, present, planned, origin)
            faults += wrong
            if value is None:
                continue
            if (
                isinstance(value, Pod)
                and present
                and isinstance(present.value, Pod)
                and _stops(present, value)
            ):
                terminating.append(self._marked(present, None))
                applied.append(Applied(present.value, Result.CONFIGURED))
                continue
            if isinstance(value, Pod) and present is None and (refused := self._refused(value, planned)):
                faults.append(FieldViolation(f"{draft.path}: {refused.path}", refused.description))
                continue
            result = _result(present, value)
            planned[draft.key] = Entry(value, origin)
            applied.append(Applied(value, result))
            if result is not Result.UNCHANGED or (present and present.origin != origin):
                upserts.append(planned[draft.key])
        if faults:
            raise ManifestError(faults, source)
        faults += _unknown_accounts(upserts, planned)
        if faults:
            raise ManifestError(faults, source)
        gone = self._missing(drafts, origin) if origin else []
        return _Change(tuple(upserts), (*terminating, *gone), (), tuple(applied))

    def _refused(self, pod: Pod, planned: Mapping[ObjectKey, Entry]) -> Refusal | None:
        """Return why the node does not take a new pod beside those that it has."""
        others = [entry.value for entry in planned.values() if isinstance(entry.value, Pod)]
        return self._admit(pod, others) if self._admit is not None else None

    def _missing(self, drafts: Sequence[Draft], origin: str) -> list[Entry]:
        """Return objects that this file held before and holds no more, as they are when deleted."""
        kept = {draft.key for draft in drafts}
        lost = [e for k, e in self._entries.items() if e.origin == origin and k not in kept]
        return [self._marked(entry, None) for entry in lost]

    def _complete(
        self, draft: Draft, present: Entry | None, planned: Mapping[ObjectKey, Entry], origin: str
    ) -> tuple[StoredObject | None, list[FieldViolation]]:
        match draft.spec:
            case ServiceDraft():
                return self._complete_service(draft, draft.spec, present, planned)
            case PodSpec():
                return self._complete_pod(draft, draft.spec, present, origin)
            case _:
                before = present.value if present else None
                return config.complete(draft, draft.spec, before, self._clock.now())

    def _complete_pod(
        self, draft: Draft, spec: PodSpec, present: Entry | None, origin: str
    ) -> tuple[Pod | None, list[FieldViolation]]:
        value = Pod(
            uid=PodUid(str(uuid.uuid4())),
            namespace=draft.key.namespace,
            name=draft.key.name,
            spec=spec,
            labels=MappingProxyType(draft.labels),
            annotations=MappingProxyType(draft.annotations),
            creation_time=self._clock.now(),
        )
        if present is None or not isinstance(present.value, Pod):
            return _made(draft, value)
        before = present.value
        if before.deletion_time is not None and not origin:
            raise ObjectTerminatingError(draft.key.namespace, draft.key.name)
        if before.spec == spec:
            return replace(before, labels=value.labels, annotations=value.annotations), []
        if origin:
            return _made(draft, value)
        wanted = update.updated(before.spec, spec)
        kept = update.without_changes(before.spec, wanted)
        changed = render.differences(render.pod_spec(before.spec), render.pod_spec(kept))
        if not changed:
            return replace(before, spec=wanted, labels=value.labels, annotations=value.annotations), []
        what = "cannot be changed while the pod exists; `tripod delete` it first"
        return None, [FieldViolation(f"{draft.path}: {path}", what) for path in changed]

    def _complete_service(
        self, draft: Draft, spec: ServiceDraft, present: Entry | None, planned: Mapping[ObjectKey, Entry]
    ) -> tuple[Service | None, list[FieldViolation]]:
        before = present.value if present and isinstance(present.value, Service) else None
        others = [e.value for k, e in planned.items() if isinstance(e.value, Service) and k != draft.key]
        taken = Taken(
            addresses={other.cluster_ip for other in others if other.cluster_ip},
            node_ports={(p.protocol, p.node_port) for other in others for p in other.ports if p.node_port},
        )
        complete, faults = allocate(
            spec,
            str(draft.key),
            self._ranges,
            taken,
            present=_draft_of(before) if before else None,
            path=draft.path,
        )
        return _service(draft, complete, before, self._clock.now()), faults

    def _marked(self, entry: Entry, grace: int | None) -> Entry:
        """Return a pod as it is once deleted; anything else does not change."""
        value = entry.value
        if not isinstance(value, Pod):
            return entry
        seconds = value.spec.termination_grace_period_seconds if grace is None else grace
        if value.deletion_time is not None:
            seconds = min(seconds, value.deletion_grace_seconds or 0)
        deletion_time = value.deletion_time or self._clock.now()
        return replace(
            entry, value=replace(value, deletion_time=deletion_time, deletion_grace_seconds=seconds)
        )

    async def delete(
        self, keys: Sequence[ObjectKey], *, grace_seconds: int | None, traceparent: str = ""
    ) -> list[ObjectKey]:
        """Delete objects; pods get their deletion time. Returns those that existed. May be repeated.

        With a namespace goes everything in it. Raises `ManifestError` for an object that a file
        of the manifest directory holds.
        """
        return await self._to_its_end(self._delete(keys, grace_seconds, traceparent))

    async def _delete(
        self, keys: Sequence[ObjectKey], grace_seconds: int | None, traceparent: str
    ) -> list[ObjectKey]:
        async with self._lock:
            there = [key for key in dict.fromkeys(keys) if key in self._entries or self._within(key)]
            wanted = dict.fromkeys([*there, *(inner for key in there for inner in self._within(key))])
            found = [key for key in wanted if key in self._entries]
            self._refuse_held(there, found)
            marked = [self._marked(self._entries[key], grace_seconds) for key in found]
            pods = [e for e in marked if isinstance(e.value, Pod) and e != self._entries[e.value.key]]
            others = tuple(e.value.key for e in marked if not isinstance(e.value, Pod))
            await self._commit(_Change((), tuple(pods), others, ()), traceparent, _DELETE)
            return there

    def _within(self, key: ObjectKey) -> list[ObjectKey]:
        """Return what goes with a namespace; nothing for another kind."""
        return [k for k in self._entries if key.kind == "Namespace" and k.namespace == key.name]

    def _refuse_held(self, keys: Sequence[ObjectKey], found: Sequence[ObjectKey]) -> None:
        what = "it belongs to the manifest directory; remove it from {} instead"
        held = [key for key in found if self._entries[key].origin]
        faults = [FieldViolation(str(key), what.format(self._entries[key].origin)) for key in held]
        if ObjectKey("Namespace", "", DEFAULT) in keys:
            faults.append(FieldViolation("namespace/default", "it cannot be deleted"))
        if faults:
            raise ManifestError(faults)

    async def delete_origin(self, origin: str) -> None:
        """Delete everything that came from a file."""

        async def act() -> None:
            async with self._lock:
                lost = self._missing([], origin)
                await self._commit(_Change((), tuple(lost), (), ()), "", _DELETE)

        await self._to_its_end(act())

    def origin(self, key: ObjectKey) -> str:
        """Return the file that an object came from; empty for one that was applied, or unknown."""
        entry = self._entries.get(key)
        return entry.origin if entry else ""

    def pods_of(self, origin: str) -> list[Pod]:
        """Return the pods that came from a file."""
        found = [entry.value for entry in self._entries.values() if entry.origin == origin]
        return [value for value in found if isinstance(value, Pod)]

    def origins(self) -> set[str]:
        """Return the files from which objects came."""
        return {entry.origin for entry in self._entries.values() if entry.origin}

    async def finalize(self, uid: PodUid) -> None:
        """Forget a pod that was deleted and of which nothing is left. May be repeated."""

        async def act() -> None:
            async with self._lock:
                pod = self.pod_hub.get(uid)
                if pod is not None and pod.deletion_time is not None:
                    await self._commit(_Change((), (), (pod.key,), ()), "", _FINALIZE)

        await self._to_its_end(act())

    async def _commit(self, change: _Change, traceparent: str, step: failpoints.Step) -> None:
        """Write a change, then show it. Raises `StoreFullError`, `StoreError`; then nothing was changed."""
        deletes = [
            *change.deletes,
            *(e.value.key for e in change.terminating if not isinstance(e.value, Pod)),
        ]
        changed = [*change.upserts, *(e for e in change.terminating if isinstance(e.value, Pod))]
        if not changed and not deletes:
            return
        revision = self._revision
        entries = []
        for entry in changed:
            revision += 1
            entries.append(replace(entry, value=replace(entry.value, revision=revision)))
        revision += len(deletes)
        async with step:
            await self._write(entries, deletes, revision, freeing=step is not _APPLY)
        self._revision = revision
        for entry in entries:
            self._show(entry, traceparent)
        for key in deletes:
            self._hide(key, traceparent)
        await step.recorded()

    async def _write(
        self, entries: Sequence[Entry], deletes: Sequence[ObjectKey], revision: int, *, freeing: bool
    ) -> None:
        if self._full and not freeing:
            # What the reserve gave back is for deletions.
            raise StoreFullError(str(self._path))
        rows = [_row(entry) for entry in entries]
        keys = [(key.kind, key.namespace, key.name) for key in deletes]
        await self._guarded(lambda: self._database.write(rows, keys, revision, freeing=freeing))

    async def _guarded(self, act: Callable[[], None]) -> None:
        """Write, and note what the file says of itself then."""
        if self._fault:
            raise StoreError(str(self._path), self._fault)
        try:
            await self._in_thread(act)
        except StoreFullError:
            self._full = True
            raise
        except StoreError as error:
            self._fault = error.why
            log.error("Lost the object store's file; running pods go on", error=error.message)
            raise

    def _show(self, entry: Entry, traceparent: str) -> None:
        key = entry.value.key
        self._entries[key] = entry
        self._unread = tuple(
            row for row in self._unread if ObjectKey(row.kind, row.namespace, row.name) != key
        )
        match entry.value:
            case Pod():
                self.pod_hub.upsert(entry.value.uid, entry.value, traceparent)
            case Service():
                self.service_hub.upsert(entry.value.uid, entry.value, traceparent)
            case _:
                self.config_hub.upsert(str(key), entry.value, traceparent)

    def _hide(self, key: ObjectKey, traceparent: str) -> None:
        entry = self._entries.pop(key, None)
        match entry.value if entry is not None else None:
            case None:
                return
            case Pod(uid=uid):
                self.pod_hub.delete(uid, traceparent)
                self._new.discard(uid)
            case Service(uid=service_uid):
                self.service_hub.delete(service_uid, traceparent)
            case _:
                self.config_hub.delete(str(key), traceparent)


def _made(draft: Draft, value: Pod) -> tuple[Pod | None, list[FieldViolation]]:
    """Return a new pod, which has no ephemeral containers yet."""
    if not value.spec.ephemeral_containers:
        return value, []
    what = "may only be added to a pod that is there, by `tripod apply`"
    return None, [FieldViolation(f"{draft.path}: spec.ephemeralContainers", what)]


def _implied_uid(kind: str, namespace: str, name: str) -> str:
    """Return the UID of an object that nobody stored: the same each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}/{namespace}/{name}"))


def _unknown_accounts(upserts: Sequence[Entry], planned: Mapping[ObjectKey, Entry]) -> list[FieldViolation]:
    """Refuse new pods whose service account is not there, as the API server's admission does."""
    faults = []
    for pod in (entry.value for entry in upserts if isinstance(entry.value, Pod)):
        name = pod.spec.service_account_name
        if name != DEFAULT and ObjectKey("ServiceAccount", pod.namespace, name) not in planned:
            what = f"there is no serviceaccount/{name} in namespace {pod.namespace}; apply it first"
            faults.append(FieldViolation(f"Pod {pod.name}: spec.serviceAccountName", what))
    return faults


def _owned_by_another(present: Entry, draft: Draft, origin: str, taken_back: bool) -> FieldViolation | None:
    """Whoever has an object keeps it. One that a lost store took back may be claimed by its file."""
    if present.origin == origin or (taken_back and not present.origin):
        return None
    if present.origin:
        what = f"belongs to the manifest {present.origin}; change it there"
    else:
        what = "was applied by a call; delete it before a manifest of the directory may hold it"
    return FieldViolation(draft.path, what)


def _stops(present: Entry, value: Pod) -> bool:
    """Tell whether a pod of a file must go before its new form can come."""
    before = present.value
    return isinstance(before, Pod) and (before.deletion_time is not None or before.uid != value.uid)


def _result(present: Entry | None, value: StoredObject) -> Result:
    if present is None:
        return Result.CREATED
    return Result.UNCHANGED if present.value == value else Result.CONFIGURED


def _draft_of(value: Service) -> ServiceDraft:
    return ServiceDraft(
        type=value.type,
        cluster_ip=value.cluster_ip or HEADLESS,
        ports=value.ports,
        selector=dict(value.selector),
    )


def _service(draft: Draft, spec: ServiceDraft, before: Service | None, now: datetime) -> Service:
    return Service(
        uid=before.uid if before else str(uuid.uuid4()),
        namespace=draft.key.namespace,
        name=draft.key.name,
        cluster_ip="" if spec.cluster_ip == HEADLESS else spec.cluster_ip,
        ports=spec.ports,
        type=spec.type,
        selector=MappingProxyType(spec.selector),
        labels=MappingProxyType(draft.labels),
        annotations=MappingProxyType(draft.annotations),
        affinity_timeout_seconds=spec.affinity_timeout_seconds,
        publish_not_ready_addresses=spec.publish_not_ready_addresses,
        external_traffic_local=spec.external_traffic_local,
        internal_traffic_local=spec.internal_traffic_local,
        creation_time=before.creation_time if before else now,
        revision=before.revision if before else 0,
    )


def _row(entry: Entry) -> Row:
    value = entry.value
    pod = value if isinstance(value, Pod) else None
    body = _body(value)
    asked = {"name": value.name} | ({"namespace": value.namespace} if value.namespace else {})
    asked |= {name: body["metadata"][name] for name in ("labels", "annotations") if name in body["metadata"]}
    return Row(
        kind=value.key.kind,
        namespace=value.namespace,
        name=value.name,
        uid=value.uid,
        revision=value.revision,
        origin=entry.origin,
        created=value.creation_time.isoformat() if value.creation_time else "",
        deleted=pod.deletion_time.isoformat() if pod and pod.deletion_time else None,
        grace=pod.deletion_grace_seconds if pod else None,
        body=json.dumps({**body, "metadata": asked}),
    )


def _body(value: StoredObject) -> dict[str, Any]:
    match value:
        case Pod():
            return render.pod(value)
        case Service():
            return render.service(value)
        case _:
            return config.body(value)


def _entry(row: Row) -> Entry:
    drafts, faults = manifest.read(row.body.encode())
    if faults:
        raise ValueError(f"{row.kind} {row.name}: {faults[0].field}: {faults[0].description}")
    draft, created = drafts[0], datetime.fromisoformat(row.created)
    if isinstance(draft.spec, ServiceDraft):
        made = _service(draft, draft.spec, None, created)
        return Entry(replace(made, uid=row.uid, revision=row.revision), row.origin)
    if not isinstance(draft.spec, PodSpec):
        value, _ = config.complete(draft, draft.spec, None, created)
        assert value is not None, "only a change can be refused"
        return Entry(replace(value, uid=row.uid, revision=row.revision), row.origin)
    pod = Pod(
        uid=PodUid(row.uid),
        namespace=row.namespace,
        name=row.name,
        spec=draft.spec,
        labels=MappingProxyType(draft.labels),
        annotations=MappingProxyType(draft.annotations),
        creation_time=created,
        deletion_time=datetime.fromisoformat(row.deleted) if row.deleted else None,
        deletion_grace_seconds=row.grace,
        revision=row.revision,
    )
    return Entry(pod, row.origin)


def _portable_entry(uid: PodUid, text: str) -> Entry | None:
    try:
        values = json.loads(text)
        body = json.loads(values["body"])
        meta = body["metadata"]
        row = Row(
            kind="Pod",
            namespace=meta["namespace"],
            name=meta["name"],
            uid=uid,
            revision=0,
            origin="",
            created=values["created"],
            deleted=None,
            grace=None,
            body=values["body"],
        )
        return _entry(row)
    except (ValueError, KeyError, TypeError):
        return None
