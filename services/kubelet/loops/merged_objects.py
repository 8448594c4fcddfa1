"""What pods bring in on a node of a cluster: from the API, and for static pods from their directory.

An object that a static pod names and that the manifest directory has is taken from there, unless a
pod of the API names it, too. Tokens of static pods are the node's own. Implements `PodObjects`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from services.kubelet.core import render
from services.kubelet.core.kube_references import references
from services.kubelet.core.model import ConfigMap, ObjectKey, Secret, Service
from services.kubelet.loops.interleaved import interleaved
from services.kubelet.ports import PodObjects, PodSource, Token, TokenRequest


class MergedObjects:
    """Both as one. `static` are the pods of the directory, `cluster_pods` those of the API."""

    def __init__(
        self, cluster: PodObjects, local: PodObjects, *, static: PodSource, cluster_pods: PodSource
    ) -> None:
        self._cluster = cluster
        self._local = local
        self._static = static
        self._cluster_pods = cluster_pods

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """Return a ConfigMap."""
        own = self._is_local(ObjectKey("ConfigMap", namespace, name))
        found = await self._local.config_map(namespace, name) if own else None
        return found or await self._cluster.config_map(namespace, name)

    async def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret."""
        own = self._is_local(ObjectKey("Secret", namespace, name))
        found = await self._local.secret(namespace, name) if own else None
        return found or await self._cluster.secret(namespace, name)

    def _is_local(self, key: ObjectKey) -> bool:
        return _named(self._static, key) and not _named(self._cluster_pods, key)

    async def services(self, namespace: str) -> Sequence[Service]:
        """Return the services of a namespace, as the API has them."""
        return await self._cluster.services(namespace)

    async def token(self, request: TokenRequest) -> Token:
        """Return a fresh token of a service account."""
        own = self._static.pod(request.pod.uid) is not None
        return await (self._local if own else self._cluster).token(request)

    async def kept_token(self, request: TokenRequest) -> str:
        """Return the token of a pod of the API that was given last."""
        own = self._static.pod(request.pod.uid) is not None
        return await (self._local if own else self._cluster).kept_token(request)

    async def root_certificates(self) -> str:
        """Return the authorities of the API server."""
        return await self._cluster.root_certificates()

    def object_changes(self) -> AsyncIterator[ObjectKey]:
        """Yield each ConfigMap or Secret of either that changed since the call."""
        return interleaved(self._cluster.object_changes(), self._local.object_changes())


def _named(pods: PodSource, key: ObjectKey) -> bool:
    return any(
        key in references({"metadata": {"namespace": pod.namespace}, "spec": render.pod_spec(pod.spec)})
        for pod in pods.pods()
        if pod.namespace == key.namespace
    )
