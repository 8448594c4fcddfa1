"""A kubelet process that has joined a cluster, on a runtime of values that outlives it.

The cluster is the fake API server, or a real one where that is built; tests speak with either as
its administrator, by our own client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc

from services.common.clock import SystemClock
from services.common.grpcclient import call, open_channel
from services.common.kubeapi import KubeApi
from services.common.kubeconfig import load as load_kubeconfig
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json, Resource, Selection
from services.kubelet.core.kube_resources import EVENTS, NODES, PODS
from tests.fakes.cri_server import FakeCri, cri_server
from tests.fakes.kube_server import KubeServer
from tests.lab.kubernetes import ControlPlane
from tests.lab.ports import free_port
from tests.matrix.process import Service

NODE = "worker"
IMAGE = "app:1"
_LIMIT_SECONDS = 30.0


def a_pod(name: str, *, node: str = NODE, **spec: Any) -> dict[str, Any]:
    """Write a pod of one container, bound to the node."""
    container = {"name": "app", "image": IMAGE}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 2,
            "automountServiceAccountToken": False,
            "containers": [container],
            **spec,
        },
    }


@dataclass(kw_only=True)
class ClusterNode:
    """The node and its cluster. `server` is the fake API server, None with a real one."""

    folder: Path
    api: KubeApi
    fake: FakeCri
    service: Service
    channel: Any
    server: KubeServer | None = None
    manifests: Path = field(default=Path())

    async def until(self, holds: Callable[[], Any], what: str, seconds: float = _LIMIT_SECONDS) -> Any:
        """Wait until a question, which may be asynchronous, has a true answer; returns that."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    answer = holds()
                    found = await answer if asyncio.iscoroutine(answer) else answer
                    if found:
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log = self.service.log.read_text()[-4000:]
            raise AssertionError(f"not within {seconds:g} s: {what}\n{log}") from None

    async def get(self, resource: Resource, name: str, namespace: str = "default") -> Json | None:
        """Return an object; None when there is none."""
        try:
            return await self.api.get(resource, namespace, name)
        except KubeApiError as error:
            if error.absent:
                return None
            raise

    async def pod(self, name: str) -> Json | None:
        """Return a pod."""
        return await self.get(PODS, name)

    async def all(self, resource: Resource, namespace: str = "") -> list[Json]:
        """Return the objects of a resource."""
        return list((await self.api.list(Selection(resource, namespace))).items)

    async def create(self, pod: Json) -> Json:
        """Make a pod."""
        return await self.api.create(PODS, pod["metadata"]["namespace"], pod)

    async def condition(self, name: str, kind: str, status: str = "True") -> Json:
        """Wait until a pod has a condition; returns the pod."""

        async def holds() -> Json | None:
            pod = await self.pod(name)
            found = (pod or {}).get("status", {}).get("conditions") or ()
            return pod if any(c["type"] == kind and c["status"] == status for c in found) else None

        return await self.until(holds, f"{name} has {kind}={status}")  # type: ignore[no-any-return]

    async def gone(self, name: str) -> None:
        """Wait until a pod is gone from the API."""

        async def holds() -> bool:
            return await self.pod(name) is None

        await self.until(holds, f"{name} is gone")

    async def node(self) -> node_pb.GetNodeResponse:
        """Return what the kubelet says of its node."""
        stub = node_grpc.NodeServiceStub(self.channel)
        answer: node_pb.GetNodeResponse = await call(
            stub.GetNode, node_pb.GetNodeRequest(), deadline_seconds=5.0
        )
        return answer

    def history(self, uid: str) -> list[tuple[str, str, int]]:
        """Return what was made at the runtime for a pod: kind, container, attempt."""
        return [(kind, name, attempt) for kind, of, name, attempt in self.fake.history if of == uid]


def kubeconfig(folder: Path, server: str, **user: str) -> Path:
    """Write a kubeconfig."""
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    path.chmod(0o600)
    return path


@asynccontextmanager
async def cluster_node(
    folder: Path,
    api: KubeApi,
    kubeconfig_file: Path,
    *,
    server: KubeServer | None = None,
    settings: Mapping[str, str] | None = None,
    start: bool = True,
) -> AsyncIterator[ClusterNode]:
    """Run the kubelet for a block."""
    fake = FakeCri(IMAGE)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    runtime = cri_server(fake, folder / "fake.sock")
    await runtime.start()
    manifests = folder / "manifests"
    manifests.mkdir(mode=0o755, exist_ok=True)
    environment = {
        "TRIPOD_NODE_NAME": NODE,
        "TRIPOD_NODE_IP": "192.0.2.7",
        "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_MANIFEST_DIRECTORY": str(manifests),
        "TRIPOD_CRI_ENDPOINT": f"unix://{folder}/fake.sock",
        "TRIPOD_KUBECONFIG": str(kubeconfig_file),
        "TRIPOD_KUBELET_LISTEN": f"127.0.0.1:{free_port()}",
        **(settings or {}),
    }
    service = Service("kubelet", folder, environment)
    channel = open_channel(f"unix://{folder}/run/kubelet.sock")
    node = ClusterNode(
        folder=folder,
        api=api,
        fake=fake,
        service=service,
        channel=channel,
        server=server,
        manifests=manifests,
    )
    try:
        if start:
            await service.start()
        yield node
    finally:
        await service.kill()
        await channel.close(None)
        await runtime.stop(0.1)


@asynccontextmanager
async def fake_cluster(folder: Path, **settings: Any) -> AsyncIterator[ClusterNode]:
    """Run a kubelet that has joined the fake API server."""
    server = KubeServer()
    await server.start()
    api = KubeApi(server.access(), SystemClock(), agent="test/1")
    try:
        async with cluster_node(
            folder, api, kubeconfig(folder, server.url), server=server, **settings
        ) as node:
            yield node
    finally:
        await api.close()
        await server.stop()


@asynccontextmanager
async def real_cluster(folder: Path, plane: ControlPlane, **settings: Any) -> AsyncIterator[ClusterNode]:
    """Run a kubelet that has joined a real API server, with a node's own rights."""
    files = await asyncio.to_thread(plane.node, NODE)
    api = KubeApi(load_kubeconfig(str(plane.admin)), SystemClock(), agent="test/1")
    try:
        async with cluster_node(folder, api, files.kubeconfig, **settings) as node:
            yield node
    finally:
        for resource in (PODS, NODES, EVENTS):
            for item in (await api.list(Selection(resource))).items:
                meta = item["metadata"]
                with suppress(KubeApiError):
                    await api.delete(resource, meta.get("namespace", ""), meta["name"], grace_seconds=0)
        await api.close()
