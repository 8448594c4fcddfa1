"""Requests and limits of a container in a manifest. Pure.

Source: Kubernetes "Resource Management for Pods and Containers", and the API server's validation. Disk, huge
pages and extended resources are counted when a pod is admitted; whether the node has any is not said here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from services.kubelet.core import quantity
from services.kubelet.core.fields import Fields, label_key_fault
from services.kubelet.core.model import Resources

EPHEMERAL_STORAGE = "ephemeral-storage"
_HUGE_PAGES = re.compile(r"hugepages-[0-9]+(Ki|Mi|Gi)?")
SHARED: dict[str, Callable[[str], int]] = {
    "cpu": quantity.millicores,
    "memory": quantity.whole,
    EPHEMERAL_STORAGE: quantity.whole,
}


def read_resources(container: Fields) -> Resources:
    """Read a container's `resources`."""
    if not container.has("resources"):
        return Resources()
    fields = Fields(
        container.raw("resources"),
        container.at("resources"),
        container.faults,
        known=("requests", "limits"),
        later={"claims": ([],)},
    )
    requests, limits = (fields.amounts(name, _readers(fields.raw(name))) for name in ("requests", "limits"))
    _check(fields, requests, limits)
    # A limit without a request is the request, too.
    asked = {**limits, **requests}
    return Resources(
        cpu_request_millicores=asked.get("cpu"),
        cpu_limit_millicores=limits.get("cpu"),
        memory_request_bytes=asked.get("memory"),
        memory_limit_bytes=limits.get("memory"),
        other_requests=_others(asked),
        other_limits=_others(limits),
    )


def _others(amounts: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, count) for name, count in amounts.items() if name not in ("cpu", "memory")))


def _readers(given: Any) -> dict[str, Callable[[str], int]]:
    names = [name for name in given if isinstance(name, str)] if isinstance(given, dict) else []
    return SHARED | {name: quantity.whole for name in names if _whole_only(name)}


def _whole_only(name: str) -> bool:
    """Tell whether a resource is one that cannot be shared: huge pages, or an extended resource."""
    return bool(_HUGE_PAGES.fullmatch(name)) or _extended(name)


def _extended(name: str) -> bool:
    domain, slash, _ = name.partition("/")
    own = domain == "kubernetes.io" or domain.endswith(".kubernetes.io")
    return bool(slash) and label_key_fault(name) is None and not own and not name.startswith("requests.")


def _check(fields: Fields, requests: dict[str, int], limits: dict[str, int]) -> None:
    place = fields.at("requests")
    for name, limit in limits.items():
        if requests.get(name, 0) > limit:
            fields.faults.add(f"{place}.{name}", "is more than the limit")
        elif _whole_only(name) and requests.get(name, limit) != limit:
            fields.faults.add(f"{place}.{name}", "must be the limit: this resource cannot be shared")
    for name in requests:
        if _whole_only(name) and name not in limits:
            fields.faults.add(f"{fields.at('limits')}.{name}", "is required, and must be the request")


def read_resize_policy(container: Fields) -> tuple[tuple[str, str], ...]:
    """Read `resizePolicy`: which change of its resources would restart a container."""
    found = []
    for item, path in container.items("resizePolicy"):
        one = Fields(item, path, container.faults, known=("resourceName", "restartPolicy"))
        name = one.text("resourceName", required=True, choices=("cpu", "memory"))
        policy = one.text("restartPolicy", required=True, choices=("NotRequired", "RestartContainer"))
        found.append((name, policy))
    return tuple(found)
