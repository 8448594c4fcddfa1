"""Which handler of the runtime a class names, from a Kubernetes API server.

A class cannot change its handler, so one that was seen is not asked for again: pods start with it while the
API server is away, after a reboot, too.

Source: Kubernetes "Runtime Class"; the kubelet's `runtimeclass/runtimeclass_manager.go`.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.errors import Code
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.kubelet.core.kube_resources import RUNTIME_CLASSES
from services.kubelet.errors import KubeletError
from services.kubelet.ports import ClusterMemory

_FACT = "runtime-class/"
# How long a sandbox waits for the API; then what is kept must do, or it is tried again.
_WAIT_SECONDS = 10.0


class RuntimeClasses:
    """Asks `api`, once for each class, and keeps in `cache` what it says."""

    def __init__(self, api: KubeApi, cache: ClusterMemory) -> None:
        self._api = api
        self._cache = cache
        self._handlers: dict[str, str] = {}
        self._kept: dict[str, str] = {}

    def remember(self, facts: Mapping[str, str]) -> None:
        """Take what a run before has kept."""
        self._kept = {
            name.removeprefix(_FACT): value for name, value in facts.items() if name.startswith(_FACT)
        }

    async def handler(self, name: str) -> str:
        """Return the handler of a class. Raises `KubeletError` for one that is not there, `KubeApiError`."""
        if name not in self._handlers:
            self._handlers[name] = await self._ask(name)
            await self._cache.keep_fact(_FACT + name, self._handlers[name])
        return self._handlers[name]

    async def _ask(self, name: str) -> str:
        try:
            found = await self._api.get(RUNTIME_CLASSES, "", name, seconds=_WAIT_SECONDS)
        except KubeApiError as error:
            if error.passing and name in self._kept:
                return self._kept[name]
            if error.code is not Code.NOT_FOUND:
                raise
            raise KubeletError(
                f'failed to get sandbox runtime: runtimeclass.node.k8s.io "{name}" not found',
                code=Code.NOT_FOUND,
                reason="RUNTIME_CLASS_NOT_FOUND",
                metadata={"runtime_class": name},
            ) from error
        return str(found.get("handler") or "")
