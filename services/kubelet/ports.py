"""What the kubelet's inside needs from the outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from services.kubelet.core.model import ObjectKey, Pod, PodUid, Service


class PodSource(Protocol):
    """Where desired pods come from: the store of a standalone node, or a kube-apiserver."""

    def pods(self) -> Sequence[Pod]:
        """Return every pod bound to this node, those being deleted too."""
        ...

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one pod; None when it is gone from the source."""
        ...

    def changes(self) -> AsyncIterator[PodUid]:
        """Yield the UID of each pod that changed, from now on. Never ends."""
        ...

    async def finalize(self, uid: PodUid) -> None:
        """Forget a pod whose deletion time is set and of which nothing is left. Idempotent."""
        ...


class ServiceSource(Protocol):
    """Where services come from."""

    def services(self) -> Sequence[Service]:
        """Return every service."""
        ...


class ObjectDeleter(Protocol):
    """Marks objects as deleted."""

    async def delete(self, keys: Sequence[ObjectKey], *, grace_seconds: int | None) -> Sequence[ObjectKey]:
        """Delete objects; a pod gets its deletion time. Returns those that existed. Idempotent."""
        ...
