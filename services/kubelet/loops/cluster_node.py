"""Register this node at a Kubernetes API server, and keep its lease and its status.

Registration is tried again after 100 ms, doubling to 7 s. The lease of 40 s is renewed each 10 s,
with five tries. The status is compared each 10 s and sent when it changed, else each 5 minutes.
A Node that somebody deleted is registered again. Ending says nothing: the node may be back soon.

Source: the kubelet's `kubelet_node_status.go`; `component-helpers/apimachinery/lease`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from services.common import failpoints, telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json, PatchType, Selection
from services.common.logs import get_logger
from services.common.reflector import Reflector
from services.common.replica import Change, newer, revision_of
from services.kubelet.core import kube_node, node_events
from services.kubelet.core.kube_node import Registration
from services.kubelet.core.kube_resources import LEASE_NAMESPACE, LEASES, NODES
from services.kubelet.core.node import NodeStatus
from services.kubelet.core.node_events import NodeEvent

log = get_logger(__name__)
_REGISTER = failpoints.step("cluster.node.register")
_FIRST_TRY_SECONDS = 0.1
_LAST_TRY_SECONDS = 7.0
_RENEW_SECONDS = 10.0
_RENEW_TRIES = 5
_STATUS_SECONDS = 10.0
# How long a ready Node may stay so after a restart until all that makes it ready has answered.
_SETTLE_SECONDS = 10.0
# Until the node is ready it is told at once, as the original does in its first two minutes.
_FAST_SECONDS = 0.5
# A renewal that hangs must not eat the lease.
_RENEW_CALL_SECONDS = 10.0


class NodeRegistrar:
    """Keeps one Node. `status` is what the node says of itself now."""

    def __init__(
        self, api: KubeApi, wanted: Registration, status: Callable[[], NodeStatus], clock: Clock
    ) -> None:
        self._api = api
        self._wanted = wanted
        self._status = status
        self._clock = clock
        self._node: Json | None = None
        self._reported_at = 0.0
        # What was told last, and what the API made of it: one that is older drops what it does not know.
        self._told: tuple[Json, Json] = ({}, {})
        self._lease_made = False
        self._gone = asyncio.Event()
        # Set once the Node is there and has been read.
        self.registered = asyncio.Event()
        self.on_node: Callable[[Json], None] = lambda node: None
        self.on_event: Callable[[NodeEvent], None] = lambda event: None
        self._unschedulable = False
        self.reflector: Reflector[Json] = Reflector(
            api,
            Selection(NODES, field_selector=f"metadata.name={wanted.name}"),
            read=_as_it_is,
            tell=self._hear,
            clock=clock,
        )

    @property
    def node(self) -> Json | None:
        """Our Node as the API had it last; None before it is registered."""
        return self._node

    @property
    def uid(self) -> str:
        """The UID of our Node; "" before it is registered."""
        return str(self._node["metadata"]["uid"]) if self._node is not None else ""

    async def run(self) -> None:
        """Register, then keep lease and status, until cancelled."""
        with telemetry.unrecorded():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_registered())
                await self.registered.wait()
                group.create_task(self.reflector.run())
                group.create_task(self._keep_lease())
                group.create_task(self._keep_status())

    async def _keep_registered(self) -> None:
        while True:
            await self._register()
            self._gone.clear()
            self.registered.set()
            await self._gone.wait()
            log.warning("Registers the node again: somebody deleted it", node=self._wanted.name)
            self._lease_made = False

    async def _register(self) -> None:
        delay, told = _FIRST_TRY_SECONDS, ""
        while True:
            try:
                async with _REGISTER:
                    self._learn(await self._present() or await self._make())
                await _REGISTER.recorded()
            except TripodError as error:
                if error.message != told:
                    log.warning("Could not register the node", node=self._wanted.name, error=error.message)
                told = error.message
                await self._clock.sleep(delay)
                delay = min(_LAST_TRY_SECONDS, delay * 2)
            else:
                log.info("Registered the node", node=self._wanted.name, uid=self.uid)
                return

    async def _present(self) -> Json | None:
        """Return the Node that is there, with our labels; None when there is none."""
        try:
            node = await self._api.get(NODES, "", self._wanted.name, seconds=_RENEW_CALL_SECONDS)
        except KubeApiError as error:
            if error.absent:
                return None
            raise
        patch = kube_node.label_patch(node, self._wanted)
        return await self._api.patch(NODES, "", self._wanted.name, patch) if patch else node

    async def _make(self) -> Json:
        try:
            return await self._api.create(NODES, "", kube_node.node(self._wanted))
        except KubeApiError as error:
            if error.reason == "ALREADY_EXISTS":
                return await self._api.get(NODES, "", self._wanted.name)
            raise

    def _hear(self, changes: Sequence[Change[Json]]) -> None:
        for change in changes:
            if change.after is not None:
                self._learn(change.after)
            elif change.uid == self.uid:
                self._gone.set()

    def _learn(self, node: Json) -> None:
        """Take a Node that is not older than what is known."""
        known = self._node if self._node is not None and node["metadata"]["uid"] == self.uid else None
        if known is not None and not newer(revision_of(node), revision_of(known)):
            return
        self._node = node
        self._tell_scheduling(bool((node.get("spec") or {}).get("unschedulable")))
        self.on_node(node)

    def _tell_scheduling(self, unschedulable: bool) -> None:
        if unschedulable is not self._unschedulable:
            self._unschedulable = unschedulable
            self.on_event(node_events.of_scheduling(self._wanted.name, unschedulable=unschedulable))

    async def _keep_lease(self) -> None:
        while True:
            began = self._clock.monotonic()
            await self._renew()
            await self._clock.sleep(max(0.0, _RENEW_SECONDS - (self._clock.monotonic() - began)))

    async def _renew(self) -> None:
        """Renew the lease, with a few tries."""
        for attempt in range(_RENEW_TRIES):
            try:
                await self._renew_once()
            except TripodError as error:
                log.warning("Could not renew the lease", attempt=attempt + 1, error=error.message)
                await self._clock.sleep(0.2 * 2**attempt)
            else:
                return

    async def _renew_once(self) -> None:
        if self._lease_made and await self._patch_lease():
            return
        self._lease_made = False
        try:
            lease = kube_node.lease(self._wanted.name, self.uid, self._clock.now())
            await self._api.create(LEASES, LEASE_NAMESPACE, lease)
        except KubeApiError as error:
            if error.reason != "ALREADY_EXISTS":
                raise
            # That of a run before may be about to end.
            await self._patch_lease()
        self._lease_made = True

    async def _patch_lease(self) -> bool:
        """Renew the lease that is there; tells whether it is."""
        name = self._wanted.name
        try:
            await self._api.patch(
                LEASES,
                LEASE_NAMESPACE,
                name,
                kube_node.renewal(name, self._clock.now()),
                kind=PatchType.MERGE,
                seconds=_RENEW_CALL_SECONDS,
                tries=1,
            )
        except KubeApiError as error:
            if not error.absent:
                raise
            return False
        return True

    async def _keep_status(self) -> None:
        began = self._clock.monotonic()
        while True:
            value = self._status()
            ready = any(c.type == "Ready" and c.holds for c in value.conditions)
            if ready or not self._settles(began):
                try:
                    await self._report(value)
                except TripodError as error:
                    log.warning("Could not report the node's status", error=error.message)
            await self._clock.sleep(_STATUS_SECONDS if ready else _FAST_SECONDS)

    def _settles(self, began: float) -> bool:
        """Tell whether a kubelet that was started again may just not have heard from its runtime yet.

        A Node that turns unready takes its pods out of their services.
        """
        if self._reported_at or self._clock.monotonic() - began >= _SETTLE_SECONDS:
            return False
        conditions = ((self._node or {}).get("status") or {}).get("conditions") or ()
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    async def _report(self, value: NodeStatus) -> None:
        """Send the status when it changed, or was not sent for long."""
        node = self._node
        if node is None or self._gone.is_set():
            return
        before = node.get("status") or {}
        after = kube_node.status(value, self._wanted, before, self._clock.now())
        now = self._clock.monotonic()
        due = not self._reported_at or now - self._reported_at >= kube_node.REPORT_SECONDS
        if not due and not (kube_node.changed(before, after) and self._news(before, after)):
            return
        patch = kube_node.status_patch(self.uid, after)
        try:
            answer = await self._api.patch(NODES, "", self._wanted.name, patch, subresource="status")
        except KubeApiError as error:
            if error.absent:
                self._gone.set()
                return
            raise
        first = not self._reported_at
        self._reported_at = now or 1e-9
        self._told = (after, answer.get("status") or {})
        self._learn(answer)
        for event in node_events.of_status(self._wanted.name, before, after, first=first):
            self.on_event(event)

    def _news(self, before: Json, after: Json) -> bool:
        """Tell whether a status, or what the API has of it, is another than when it was told last."""
        told, answer = self._told
        return kube_node.changed(told, after) or kube_node.changed(before, answer)


def _as_it_is(node: Json) -> Json:
    return node
