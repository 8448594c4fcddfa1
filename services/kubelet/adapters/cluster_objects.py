"""What pods bring in, from a Kubernetes API server. Implements `PodObjects`.

Each ConfigMap and Secret that a pod of this node names is watched by its name, which is all that
a node may do, once for however many pods name it, and kept on disk for times without the API.
What nobody names is asked for once. Services are watched and kept as a whole, for the variables that name
them. Tokens are kept, too: those in volumes lie in memory, and are gone after a reboot.

Source: the kubelet's `util/manager/watch_based_manager.go`, `token/token_manager.go`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import Code
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json, Selection
from services.common.logs import get_logger
from services.common.reflector import Reflector
from services.common.replica import Change
from services.common.watch import Upserted, WatchHub
from services.kubelet.core import kube_objects, render
from services.kubelet.core.kube_references import references
from services.kubelet.core.kube_resources import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, SERVICES
from services.kubelet.core.model import ConfigMap, ObjectKey, Secret, Service
from services.kubelet.errors import KubeletError
from services.kubelet.ports import ClusterMemory, Token, TokenRequest

V = TypeVar("V")
log = get_logger(__name__)
_TOKEN = "Token"  # a kind, no secret
_RESOURCES = {"ConfigMap": CONFIG_MAPS, "Secret": SECRETS}
# How long a container's start waits for the API; then it is tried again.
_WAIT_SECONDS = 10.0
# What is kept from before is used when the API does not answer soon.
_KEPT_WAIT_SECONDS = 2.0
# The fact that all services are among what is kept, be it none.
SERVICES_KEPT = "services-kept"


class _Watched:
    """One object that pods name."""

    def __init__(self, key: ObjectKey, kept: Json | None, api: KubeApi, clock: Clock) -> None:
        self.key = key
        self.kept = kept
        self.on_change: Callable[[_Watched], None] = lambda watched: None
        self.reflector: Reflector[Json] = Reflector(
            api,
            Selection(_RESOURCES[key.kind], key.namespace, field_selector=f"metadata.name={key.name}"),
            read=_as_it_is,
            tell=self._hear,
            clock=clock,
        )

    def _hear(self, changes: Sequence[Change[Json]]) -> None:
        self.on_change(self)

    @property
    def body(self) -> Json | None:
        """What the API says; before it has said anything, what was kept."""
        if not self.reflector.synced.is_set():
            return self.kept
        return next(iter(self.reflector.values().values()), None)


class ClusterObjects:
    """The objects of one node's pods. `authority` is the PEM text of the API's authorities."""

    def __init__(
        self,
        api: KubeApi,
        cache: ClusterMemory,
        clock: Clock,
        *,
        bodies: Callable[[], Iterable[Json]],
        authority: str,
    ) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._bodies = bodies
        self._authority = authority
        self._kept: dict[ObjectKey, Json] = {}
        self._watched: dict[ObjectKey, tuple[_Watched, asyncio.Task[None]]] = {}
        self._kept_services: dict[ObjectKey, Service] = {}
        self._services_kept = False
        self._tokens: dict[ObjectKey, str] = {}
        self._dirty: set[ObjectKey] = set()
        self._dirty_services: dict[ObjectKey, Json | None] = {}
        self._wake = asyncio.Event()
        self._changes: WatchHub[ObjectKey] = WatchHub("objects")
        self._services: Reflector[Service] = Reflector(
            api, Selection(SERVICES), read=kube_objects.read_service, tell=self._services_moved, clock=clock
        )

    def remember(self, kept: Mapping[ObjectKey, Json], *, services_kept: bool) -> None:
        """Take what a run before has kept; `services_kept` says whether all services are among it."""
        self._services_kept = services_kept
        self._kept = {key: body for key, body in kept.items() if key.kind in _RESOURCES}
        self._tokens = {key: str(body["token"]) for key, body in kept.items() if key.kind == _TOKEN}
        services = [kube_objects.read_service(body) for key, body in kept.items() if key.kind == "Service"]
        self._kept_services = {service.key: service for service in services}

    def look(self) -> None:
        """Compare soon what is watched with what pods name: a pod came, changed or went."""
        self._wake.set()

    async def run(self) -> None:
        """Watch what pods name until cancelled."""
        self._begin_anew()
        with telemetry.unrecorded():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._services.run())
                group.create_task(self._note_services())
                while True:
                    self._wake.clear()
                    self._compare(group)
                    await self._keep()
                    await self._wake.wait()

    def _begin_anew(self) -> None:
        """Keep what a run before has heard, whose watches ended with it."""
        heard = {key: watched.body for key, (watched, _) in self._watched.items()}
        self._kept = {key: body for key, body in (self._kept | heard).items() if body is not None}
        self._watched.clear()

    def _compare(self, group: asyncio.TaskGroup) -> None:
        named = {key for body in self._bodies() for key in references(body)}
        for key in named - self._watched.keys():
            watched = _Watched(key, self._kept.get(key), self._api, self._clock)
            watched.on_change = self._moved
            self._watched[key] = (watched, group.create_task(watched.reflector.run()))
        for key in self._watched.keys() - named:
            self._watched.pop(key)[1].cancel()
            self._kept.pop(key, None)
            self._changes.delete(str(key))
            self._dirty.add(key)
        uids = {str(body["metadata"]["uid"]) for body in self._bodies()}
        for key in [key for key in self._tokens if key.name.partition("/")[0] not in uids]:
            del self._tokens[key]
            self._dirty.add(key)

    def _moved(self, watched: _Watched) -> None:
        self._dirty.add(watched.key)
        self._changes.upsert(str(watched.key), watched.key)
        self._wake.set()

    def _services_moved(self, changes: Sequence[Change[Service]]) -> None:
        """Keep the services, too: without their variables no container may start."""
        there = {service.key for service in self._services.values().values()}
        self._dirty_services |= dict.fromkeys(self._kept_services.keys() - there)
        self._kept_services = {}
        for change in changes:
            told = change.after or change.before
            if told is not None:
                body = render.service(told) if change.after is not None else None
                self._dirty_services[told.key] = body
        self._wake.set()

    async def _note_services(self) -> None:
        await self._services.synced.wait()
        await self._cache.keep_fact(SERVICES_KEPT, "true")

    async def _keep(self) -> None:
        while self._dirty or self._dirty_services:
            bodies, self._dirty_services = self._dirty_services, {}
            bodies |= {key: self._present(key) for key in self._dirty}
            self._dirty.clear()
            await self._cache.keep_objects(bodies)

    def _present(self, key: ObjectKey) -> Json | None:
        """Return what is kept of a ConfigMap, a Secret or a token; None for one that is not."""
        if key.kind == _TOKEN:
            return {"token": self._tokens[key]} if key in self._tokens else None
        return self._watched[key][0].body if key in self._watched else None

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """Return a ConfigMap."""
        body = await self._body(ObjectKey("ConfigMap", namespace, name))
        return None if body is None else kube_objects.read_config_map(body)

    async def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret."""
        body = await self._body(ObjectKey("Secret", namespace, name))
        return None if body is None else kube_objects.read_secret(body)

    async def _body(self, key: ObjectKey) -> Json | None:
        entry = self._watched.get(key)
        if entry is None and any(key in references(body) for body in self._bodies()):
            # The pod that names it came just now.
            self._wake.set()
            await asyncio.sleep(0)
            entry = self._watched.get(key)
        if entry is None:
            return await self._ask(key)
        watched = entry[0]
        await self._synced(watched.reflector, str(key), kept=watched.kept is not None)
        if watched.kept is not None and watched.body is None:
            # It went while the API was away.
            watched.kept = None
            self._moved(watched)
        return watched.body

    async def _ask(self, key: ObjectKey) -> Json | None:
        try:
            return await self._api.get(_RESOURCES[key.kind], key.namespace, key.name, seconds=_WAIT_SECONDS)
        except KubeApiError as error:
            if error.absent:
                return None
            raise

    async def _synced(self, reflector: Reflector[V], what: str, *, kept: bool) -> None:
        """Wait for the API's word; without it, what is kept must do, if there is any."""
        if reflector.synced.is_set():
            return
        try:
            async with asyncio.timeout(_KEPT_WAIT_SECONDS if kept else _WAIT_SECONDS):
                await reflector.synced.wait()
        except TimeoutError:
            if not kept:
                raise KubeletError(
                    f"{what} cannot be read now: {reflector.fault() or 'the API server does not answer'}",
                    code=Code.UNAVAILABLE,
                    reason="API_UNREACHABLE",
                    metadata={"object": what},
                ) from None

    async def services(self, namespace: str) -> Sequence[Service]:
        """Return the services of a namespace."""
        await self._synced(self._services, "services", kept=self._services_kept)
        told = self._services.synced.is_set()
        known = self._services.values().values() if told else self._kept_services.values()
        return [service for service in known if service.namespace == namespace]

    @property
    def known_service_count(self) -> int:
        """How many services are known."""
        return len(self._services.values())

    async def token(self, request: TokenRequest) -> Token:
        """Ask for a token of a service account, bound to a pod."""
        pod = request.pod
        spec = {
            "expirationSeconds": request.expiration_seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid},
            **({"audiences": [request.audience]} if request.audience else {}),
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self._api.create(
            SERVICE_ACCOUNTS,
            pod.namespace,
            body,
            name=request.service_account,
            subresource="token",
            seconds=_WAIT_SECONDS,
        )
        status = answer["status"]
        key = _token_key(request)
        self._tokens[key] = status["token"]
        self._dirty.add(key)
        self._wake.set()
        return Token(status["token"], datetime.fromisoformat(status["expirationTimestamp"]))

    async def kept_token(self, request: TokenRequest) -> str:
        """Return the token that the API gave last, while it does not answer."""
        return self._tokens.get(_token_key(request), "") if self._api.fault() else ""

    async def root_certificates(self) -> str:
        """Return the authorities of the API server."""
        return self._authority

    async def object_changes(self) -> AsyncIterator[ObjectKey]:
        """Yield each ConfigMap or Secret that changed since the call."""
        async for change in self._changes.watch(self._changes.revision, self._changes.run_id):
            if isinstance(change, Upserted):
                yield change.value


def _token_key(request: TokenRequest) -> ObjectKey:
    pod = request.pod
    return ObjectKey(_TOKEN, pod.namespace, f"{pod.uid}/{request.service_account}/{request.audience}")


def _as_it_is(body: Json) -> Json:
    return body
