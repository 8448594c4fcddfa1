"""A real kubelet whose every word to its runtime, and back, goes through a proxy that harms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from services.common.grpcclient import open_channel, stream
from tests.fakes.cri_server import FakeCri, cri_server
from tests.lab.faultproxy import FaultProxy, fault_proxy
from tests.matrix.kubelet import World
from tests.matrix.process import Service

POD_LABEL = "io.kubernetes.pod.name"
RUNTIME, IMAGES = "runtime.v1.RuntimeService", "runtime.v1.ImageService"


def manifest(name: str, image: str, **container: Any) -> dict[str, Any]:
    """Write a pod of one container."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": image, **container}],
        },
    }


@dataclass
class FaultyNode:
    """The kubelet, its runtime, and the proxy between them."""

    world: World
    fake: FakeCri
    proxy: FaultProxy

    def about(self, pod: str) -> Callable[[bytes], bool]:
        """Accept requests that name a pod, or what the runtime has of it."""

        def accepts(request: bytes) -> bool:
            ids = [b.id for b in self.fake.sandboxes.values() if b.metadata.name == pod]
            ids += [c.id for c, _ in self.fake.containers.values() if c.labels.get(POD_LABEL) == pod]
            return any(word.encode() in request for word in (pod, *ids))

        return accepts

    async def until(self, holds: Callable[[dict[str, pod_pb.Pod]], bool], seconds: float = 60) -> None:
        """Wait until the pods, by name, are as wanted."""
        async with asyncio.timeout(seconds):
            while not holds(await self.world.pods()):  # noqa: ASYNC110  # the condition lies behind a wire
                await asyncio.sleep(0.1)

    async def until_ready(self, *names: str, seconds: float = 60) -> None:
        """Wait until pods are ready."""
        await self.until(lambda pods: all(name in pods and pods[name].ready for name in names), seconds)

    async def events(self) -> list[pod_pb.Event]:
        """Return what the kubelet remembers to have told."""
        stub = pod_grpc.PodServiceStub(self.world.channel)
        request = pod_pb.WatchEventsRequest(only_remembered=True)
        async with stream(stub.WatchEvents, request, deadline_seconds=10) as answers:
            return [answer.event async for answer in answers if answer.HasField("event")]

    def created(self, pod: str) -> list[tuple[str, str, int]]:
        """Return what was made and started for a pod: kind, container, attempt."""
        uids = {b.metadata.uid for b in self.fake.sandboxes.values() if b.metadata.name == pod}
        return [(kind, name, attempt) for kind, uid, name, attempt in self.fake.history if uid in uids]


@asynccontextmanager
async def faulty_node(folder: Path, fake: FakeCri) -> AsyncIterator[FaultyNode]:
    """Run all of it for a block."""
    server = cri_server(fake, folder / "runtime.sock")
    await server.start()
    environment = {
        "TRIPOD_NODE_NAME": "faulty",
        "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_CRI_ENDPOINT": f"unix://{folder}/proxy.sock",
    }
    service = Service("kubelet", folder, environment)
    async with (
        fault_proxy(f"unix://{folder}/runtime.sock", folder / "proxy.sock") as proxy,
        open_channel(f"unix://{folder}/run/kubelet.sock") as channel,
    ):
        world = World(folder=folder, fake=fake, service=service, channel=channel)
        await service.start()
        try:
            yield FaultyNode(world, fake, proxy)
        finally:
            await service.kill()
    await server.stop(0.1)
