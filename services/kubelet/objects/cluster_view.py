"""The objects of a node that has joined a cluster, as far as the node has them.

The API server holds them: here they are read, and whoever wants to change them is told where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from services.common.watch import WatchHub
from services.kubelet.core.model import ObjectKey, Service
from services.kubelet.errors import ClusterModeError
from services.kubelet.objects.store import Applied, ObjectStore, StoredObject
from services.kubelet.ports import PodSource


class ClusterView:
    """Shows the pods of `source`, and of `store` what the manifest directory holds."""

    def __init__(self, store: ObjectStore, source: PodSource, server: str) -> None:
        self._store = store
        self._source = source
        self._server = server

    @property
    def revision(self) -> int:
        """The last revision of the local store."""
        return self._store.revision

    @property
    def service_hub(self) -> WatchHub[Service]:
        """The services of the manifest directory."""
        return self._store.service_hub

    def find(self, key: ObjectKey) -> StoredObject | None:
        """Return one object; None when this node does not have it."""
        if key.kind != "Pod":
            return self._store.find(key)
        return next((pod for pod in self._source.pods() if pod.key == key), None)

    def listing(self, kind: str, namespace: str = "") -> list[StoredObject]:
        """List the objects of a kind by namespace and name."""
        if kind != "Pod":
            return self._store.listing(kind, namespace)
        found = [pod for pod in self._source.pods() if namespace in ("", pod.namespace)]
        return sorted(found, key=lambda pod: (pod.namespace, pod.name))

    async def apply(
        self, data: bytes, *, source: str = "", dry_run: bool = False, traceparent: str = ""
    ) -> list[Applied]:
        """Refuse: raises `ClusterModeError`."""
        self._refuse("kubectl apply")

    async def delete(
        self, keys: Sequence[ObjectKey], *, grace_seconds: int | None, traceparent: str = ""
    ) -> list[ObjectKey]:
        """Refuse: raises `ClusterModeError`."""
        self._refuse("kubectl delete")

    def _refuse(self, instead: str) -> NoReturn:
        raise ClusterModeError(self._server, instead)
