"""What pods bring in on a standalone node, from its store and its keys. Implements `PodObjects`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from services.common.errors import Code
from services.common.watch import Bookmark
from services.kubelet.core.model import ConfigMap, ObjectKey, Pod, Secret, Service
from services.kubelet.errors import KubeletError
from services.kubelet.objects.store import ObjectStore
from services.kubelet.objects.tokens import TokenIssuer
from services.kubelet.ports import Token, TokenRequest

_BROUGHT = ("ConfigMap", "Secret")


class LocalObjects:
    """Reads the node's own store."""

    def __init__(self, store: ObjectStore, issuer: TokenIssuer) -> None:
        self._store = store
        self._issuer = issuer

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """Return a ConfigMap."""
        found = self._store.find(ObjectKey("ConfigMap", namespace, name))
        return found if isinstance(found, ConfigMap) else None

    async def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret."""
        found = self._store.find(ObjectKey("Secret", namespace, name))
        return found if isinstance(found, Secret) else None

    async def services(self, namespace: str) -> Sequence[Service]:
        """Return the services of a namespace."""
        return [service for service in self._store.services() if service.namespace == namespace]

    async def token(self, request: TokenRequest) -> Token:
        """Sign a token of a service account."""
        namespace = request.pod.namespace
        account = self._store.service_account(namespace, request.service_account)
        if account is None:
            raise KubeletError(
                f"serviceaccount/{request.service_account} does not exist in namespace {namespace}",
                code=Code.NOT_FOUND,
                reason="OBJECT_NOT_FOUND",
            )
        return await asyncio.to_thread(self._issuer.issue, request, account)

    async def kept_token(self, request: TokenRequest) -> str:
        """Return none: there are always fresh ones."""
        return ""

    async def root_certificates(self) -> str:
        """Return nothing: a standalone node has no API for pods to trust."""
        return ""

    async def object_changes(self) -> AsyncIterator[ObjectKey]:
        """Yield each ConfigMap or Secret that changed since the call."""
        hub = self._store.config_hub
        async for change in hub.watch(hub.revision, hub.run_id):
            if isinstance(change, Bookmark):
                continue
            kind, namespace, name = change.key.split("/")
            for known in _BROUGHT:
                if known.lower() == kind:
                    yield ObjectKey(known, namespace, name)

    def account_secrets(self, pod: Pod) -> Sequence[str]:
        """Name the pull secrets of a pod's service account."""
        account = self._store.service_account(pod.namespace, pod.spec.service_account_name)
        return account.image_pull_secrets if account else ()
