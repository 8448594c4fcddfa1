"""Pull an image with the secrets that a pod names: each credential that fits is tried.

A secret that is not there only warns, as in Kubernetes: the image may be had without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.common import failpoints
from services.common.errors import TripodError
from services.kubelet.core.model import Pod, Secret
from services.kubelet.core.pull_secrets import Credential, credentials_for
from services.kubelet.ports import EventSink, PodObjects, Runtime

_IMAGE = failpoints.step("pod.image")


class Puller:
    """Pulls for all pods. `account_secrets` names those of a pod's service account."""

    def __init__(
        self,
        runtime: Runtime,
        objects: PodObjects,
        events: EventSink,
        account_secrets: Callable[[Pod], Sequence[str]],
    ) -> None:
        self._runtime = runtime
        self._objects = objects
        self._events = events
        self._account_secrets = account_secrets
        self.on_pulled: Callable[[], None] = lambda: None

    async def pull(self, pod: Pod, image: str) -> None:
        """Pull an image for a pod. Raises the runtime's last `TripodError` when no credential did."""
        secrets = await self._secrets(pod)
        tries: Sequence[Credential | None] = credentials_for(image, secrets) or [None]
        for number, credential in enumerate(tries, 1):
            try:
                async with _IMAGE:
                    await self._runtime.pull_image(image, credential)
            except TripodError:
                if number == len(tries):
                    raise
            else:
                self.on_pulled()
                await _IMAGE.recorded()
                return

    async def _secrets(self, pod: Pod) -> list[Secret]:
        names = pod.spec.image_pull_secrets or tuple(self._account_secrets(pod))
        found: list[Secret] = []
        missing = []
        for name in names:
            try:
                secret = await self._objects.secret(pod.namespace, name)
            except TripodError:
                secret = None
            if secret is None:
                missing.append(name)
            else:
                found.append(secret)
        if missing:
            what = f"Unable to retrieve some image pull secrets ({', '.join(missing)}); "
            message = what + "attempting to pull the image may not succeed."
            self._events.emit(pod, "FailedToRetrieveImagePullSecret", message, warning=True)
        return found
