"""Names of containers from a CRI server. Implements `Metadata`."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.cadvisor.core.model import Identity
from services.common import telemetry
from services.common.grpcclient import call

SANDBOX_NAME = "POD"
_DEADLINE_SECONDS = 3.0


class CriMetadata:
    """Asks one CRI server over one channel, which its opener closes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._runtime = pb_grpc.RuntimeServiceStub(channel)

    async def identities(self) -> Mapping[str, Identity]:
        """Return who containers and sandboxes are."""
        with telemetry.unrecorded():
            sandboxes = await call(
                self._runtime.ListPodSandbox, pb.ListPodSandboxRequest(), deadline_seconds=_DEADLINE_SECONDS
            )
            containers = await call(
                self._runtime.ListContainers, pb.ListContainersRequest(), deadline_seconds=_DEADLINE_SECONDS
            )
        pods = {item.id: item for item in sandboxes.items}
        found = {item.id: _identity(item, SANDBOX_NAME) for item in sandboxes.items}
        for item in containers.containers:
            pod = pods.get(item.pod_sandbox_id)
            if pod is not None:
                found[item.id] = _identity(
                    pod,
                    item.metadata.name,
                    image=item.image.image,
                    restarts=item.metadata.attempt,
                    container_id=item.id,
                )
        return found


def _identity(
    pod: pb.PodSandbox, name: str, *, image: str = "", restarts: int = 0, container_id: str = ""
) -> Identity:
    return Identity(
        path="",
        id=container_id or pod.id,
        container=name,
        pod=pod.metadata.name,
        namespace=pod.metadata.namespace,
        pod_uid=pod.metadata.uid,
        image=image,
        labels=dict(pod.labels),
        restarts=restarts,
    )
