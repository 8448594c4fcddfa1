"""CPU and memory of a container as the kernel wants them. Pure.

Source: the kubelet: shares = millicores * 1024 / 1000 (at least 2), quota =
millicores * period / 1000 (at least 1 ms) in periods of 100 ms, and the out-of-memory
score of each quality of service (Kubernetes "Node-pressure Eviction").
"""

from __future__ import annotations

from dataclasses import dataclass

from services.kubelet.core.model import Container, Pod

PERIOD_MICROSECONDS = 100_000
_MIN_SHARES = 2
_MIN_QUOTA_MICROSECONDS = 1_000


@dataclass(frozen=True, slots=True)
class KernelResources:
    """What a container gets. Zero means that nothing is set."""

    cpu_shares: int
    cpu_quota_microseconds: int
    memory_limit_bytes: int
    oom_score_adj: int
    cpu_period_microseconds: int = PERIOD_MICROSECONDS


def kernel_resources(pod: Pod, container: Container, machine_memory_bytes: int) -> KernelResources:
    """Convert a container's requests and limits."""
    wanted = container.resources
    request = wanted.cpu_request_millicores or 0
    limit = wanted.cpu_limit_millicores
    quota = limit * PERIOD_MICROSECONDS // 1000 if limit else 0
    return KernelResources(
        cpu_shares=max(_MIN_SHARES, request * 1024 // 1000),
        cpu_quota_microseconds=max(_MIN_QUOTA_MICROSECONDS, quota) if quota else 0,
        memory_limit_bytes=wanted.memory_limit_bytes or 0,
        oom_score_adj=_oom_score(pod, container, machine_memory_bytes),
    )


def quality_of_service(pod: Pod) -> str:
    """Return Guaranteed, Burstable or BestEffort: init containers count, ephemeral ones do not."""
    counted = (*pod.spec.containers, *pod.spec.init_containers)
    resources = [container.resources for container in counted]
    values = [
        (r.cpu_request_millicores, r.cpu_limit_millicores, r.memory_request_bytes, r.memory_limit_bytes)
        for r in resources
    ]
    if not any(value for group in values for value in group):
        return "BestEffort"
    full = all(group[1] and group[3] and group[0] == group[1] and group[2] == group[3] for group in values)
    return "Guaranteed" if full else "Burstable"


def _oom_score(pod: Pod, container: Container, machine_memory_bytes: int) -> int:
    quality = quality_of_service(pod)
    if quality == "Guaranteed":
        return -997
    if quality == "BestEffort":
        return 1000
    request = container.resources.memory_request_bytes or 0
    if container in pod.spec.sidecars:
        # A sidecar is not killed before the containers that need it.
        mains = [c.resources.memory_request_bytes or 0 for c in pod.spec.containers]
        request = max(request, min(mains))
    score = 1000 - 1000 * request // max(1, machine_memory_bytes)
    return min(999, max(3, score))
