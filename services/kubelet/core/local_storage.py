"""Decide whether a pod takes more of the node's disk than it may. Pure.

A container takes its writable layer and its logs, a pod those of its containers and its emptyDirs on disk.
What a pod limits, it must keep to: an emptyDir its `sizeLimit`, the pod the sum of its containers' limits of
`ephemeral-storage`, a container its own. The first that is exceeded, in this order, ends the pod.

Source: the kubelet's `eviction_manager.go`, `localStorageEviction`. Pressure of the node as a whole is left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.kubelet.core import quantity
from services.kubelet.core.manifest_resources import EPHEMERAL_STORAGE
from services.kubelet.core.memory import Over
from services.kubelet.core.model import Container, EmptyDir, Pod

REASON = "Evicted"


@dataclass(frozen=True, slots=True)
class Taken:
    """What a pod takes in bytes: by container, its layer and logs, and by emptyDir."""

    containers: Mapping[str, int]
    empty_dirs: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.containers.values()) + sum(self.empty_dirs.values())


def limit_of(container: Container) -> int | None:
    """Return how much of the disk a container may take; None when nothing is said."""
    return dict(container.resources.other_limits).get(EPHEMERAL_STORAGE)


def on_disk(pod: Pod) -> tuple[str, ...]:
    """Name the emptyDirs that lie on the node's disk."""
    volumes = pod.spec.volumes
    return tuple(v.name for v in volumes if isinstance(v.source, EmptyDir) and not v.source.memory)


def is_limited(pod: Pod) -> bool:
    """Tell whether anything limits what a pod takes, so that it must be measured."""
    limits = any(limit_of(container) is not None for container in pod.spec.every)
    return limits or bool(_sized(pod))


def _sized(pod: Pod) -> dict[str, int]:
    found = {v.name: v.source for v in pod.spec.volumes if isinstance(v.source, EmptyDir)}
    return {
        name: source.size_limit_bytes
        for name, source in found.items()
        if source.size_limit_bytes and not source.memory
    }


def over(pod: Pod, taken: Taken) -> Over | None:
    """Return why a pod is ended for what it takes; None when it keeps to its limits."""
    for name, limit in _sized(pod).items():
        if taken.empty_dirs.get(name, 0) > limit:
            what = f'Usage of EmptyDir volume "{name}" exceeds the limit "{quantity.format_bytes(limit)}". '
            return Over(REASON, what)
    limits = {container.name: limit_of(container) for container in pod.spec.every}
    total = sum(limit for limit in limits.values() if limit is not None)
    if total and taken.total > total:
        size = quantity.format_bytes(total)
        return Over(
            REASON, f"Pod ephemeral local storage usage exceeds the total limit of containers {size}. "
        )
    for name, own in limits.items():
        if own is not None and taken.containers.get(name, 0) > own:
            size = quantity.format_bytes(own)
            return Over(REASON, f'Container {name} exceeded its local ephemeral storage limit "{size}". ')
    return None
