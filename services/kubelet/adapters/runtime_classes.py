"""Which handler of the runtime a class names, from a Kubernetes API server.

A class cannot change its handler, so one that was seen is not asked for again: pods start with it while the
API server is away.

Source: Kubernetes "Runtime Class"; the kubelet's `runtimeclass/runtimeclass_manager.go`.
"""

from __future__ import annotations

from services.common.errors import Code
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.kubelet.core.kube_resources import RUNTIME_CLASSES
from services.kubelet.errors import KubeletError


class RuntimeClasses:
    """Asks `api`, once for each class."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._handlers: dict[str, str] = {}

    async def handler(self, name: str) -> str:
        """Return the handler of a class. Raises `KubeletError` for one that is not there, `KubeApiError`."""
        if name not in self._handlers:
            self._handlers[name] = await self._ask(name)
        return self._handlers[name]

    async def _ask(self, name: str) -> str:
        try:
            return str((await self._api.get(RUNTIME_CLASSES, "", name)).get("handler") or "")
        except KubeApiError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            raise KubeletError(
                f'failed to get sandbox runtime: runtimeclass.node.k8s.io "{name}" not found',
                code=Code.NOT_FOUND,
                reason="RUNTIME_CLASS_NOT_FOUND",
                metadata={"runtime_class": name},
            ) from error
