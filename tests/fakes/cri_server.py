"""A CRI server of values, over a real socket: it outlives the kubelet that is killed.

It refuses what a CRI server refuses, remembers every change, and notes what must
never happen: two live containers of one name in one pod, two ready sandboxes of
one pod. Passes the contract suite of runtimes.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.errors import Code, TripodError
from services.common.grpcserver import GrpcServer, Listener, Servicer, build_server
from services.kubelet.cri.ledger import LEDGER_INFO

UID_LABEL = "io.kubernetes.pod.uid"


def refused(reason: str, message: str, code: Code = Code.FAILED_PRECONDITION) -> TripodError:
    """Make the error of a refused call."""
    return TripodError(message, code=code, reason=reason)


class FakeCri(pb_grpc.RuntimeServiceServicer, pb_grpc.ImageServiceServicer):
    """Serves both CRI services from memory. `images` are those that are here or can be pulled."""

    def __init__(self, *images: str, pullable: tuple[str, ...] = ()) -> None:
        self.images = set(images)
        self.pullable = set(pullable)
        self.sandboxes: dict[str, pb.PodSandboxStatus] = {}
        self.containers: dict[str, tuple[pb.ContainerStatus, str]] = {}
        self._requests: dict[str, bytes] = {}
        self.history: list[tuple[str, str, str, int]] = []
        self.violations: list[str] = []
        self._watchers: set[asyncio.Queue[pb.ContainerEventResponse]] = set()
        self._count = 0
        self.pod_cidr = ""

    async def UpdateRuntimeConfig(self, request: Any, context: Any) -> pb.UpdateRuntimeConfigResponse:
        """Take the pod CIDR."""
        self.pod_cidr = request.runtime_config.network_config.pod_cidr
        return pb.UpdateRuntimeConfigResponse()

    def copy_from(self, other: FakeCri) -> None:
        """Hold what another one holds."""
        self.images |= other.images
        self.sandboxes = copy.deepcopy(other.sandboxes)
        self.containers = copy.deepcopy(other.containers)
        self._requests = dict(other._requests)
        self._count = other._count

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count:04d}".ljust(64, "0")

    def _uid(self, container: pb.ContainerStatus) -> str:
        return container.labels.get(UID_LABEL, "")

    def _tell(self, sandbox_id: str, kind: pb.ContainerEventType.ValueType) -> None:
        box = self.sandboxes.get(sandbox_id)
        if box is not None:
            event = pb.ContainerEventResponse(
                container_id=sandbox_id, container_event_type=kind, pod_sandbox_status=box
            )
            for queue in self._watchers:
                queue.put_nowait(event)

    def running(self, uid: str) -> list[pb.ContainerStatus]:
        """Return the running containers of a pod."""
        return [
            c for c, _ in self.containers.values() if self._uid(c) == uid and c.state == pb.CONTAINER_RUNNING
        ]

    def environment(self, container_id: str) -> dict[str, str]:
        """Return the variables that a container was made with."""
        config = pb.CreateContainerRequest.FromString(self._requests[container_id]).config
        # Newer releases of the contract have the value as bytes, which is the same on the wire.
        return {
            item.key: item.value.decode() if isinstance(item.value, bytes) else str(item.value)
            for item in config.envs
        }

    def reboot(self) -> None:
        """End everything that runs, as a reboot of the host does, and tell nobody."""
        for container, _ in self.containers.values():
            if container.state == pb.CONTAINER_RUNNING:
                container.state = pb.CONTAINER_EXITED
                container.exit_code, container.reason = 255, "Error"
                container.finished_at = time.time_ns()
        for box in self.sandboxes.values():
            box.state = pb.SANDBOX_NOTREADY

    def crash(self, uid: str, name: str, exit_code: int) -> None:
        """End a running container, as a crash does."""
        for container in self.running(uid):
            if container.metadata.name == name:
                self._end(container, exit_code)
                self._tell(self.containers[container.id][1], pb.CONTAINER_STOPPED_EVENT)

    def stir(self) -> None:
        """Tell of every sandbox again, so that whoever follows the events looks at it."""
        for key in list(self.sandboxes):
            self._tell(key, pb.CONTAINER_STARTED_EVENT)

    def _end(self, container: pb.ContainerStatus, exit_code: int) -> None:
        container.state, container.exit_code = pb.CONTAINER_EXITED, exit_code
        container.finished_at = time.time_ns()  # The CRI counts from the epoch.
        container.reason = "Completed" if exit_code == 0 else "Error"

    async def Version(self, request: pb.VersionRequest, context: Any) -> pb.VersionResponse:
        """Return a name."""
        return pb.VersionResponse(
            version="0.1.0", runtime_name="fake", runtime_version="1", runtime_api_version="v1"
        )

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        """Say that all is well, and tell what is held."""
        names = ("RuntimeReady", "NetworkReady")
        status = pb.RuntimeStatus(conditions=[pb.RuntimeCondition(type=n, status=True) for n in names])
        info = {LEDGER_INFO: json.dumps(self.ledger())} if request.verbose else {}
        able = pb.RuntimeHandlerFeatures(recursive_read_only_mounts=True, user_namespaces=True)
        handlers = [pb.RuntimeHandler(name=name, features=able) for name in ("runc", "")]
        features = pb.RuntimeFeatures(supplemental_groups_policy=True)
        return pb.StatusResponse(status=status, info=info, runtime_handlers=handlers, features=features)

    def ledger(self) -> dict[str, Any]:
        """List what is held, as our CRI server does."""
        ready = {i: box for i, box in self.sandboxes.items() if box.state == pb.SANDBOX_READY}
        return {
            "containers": [
                {
                    "id": c.id,
                    "uid": self._uid(c),
                    "name": c.metadata.name,
                    "attempt": str(c.metadata.attempt),
                    "state": pb.ContainerState.Name(c.state),
                    "sandbox_id": box,
                }
                for c, box in self.containers.values()
            ],
            "sandboxes": [
                {
                    "id": box.id,
                    "uid": box.metadata.uid,
                    "pod": f"{box.metadata.namespace}/{box.metadata.name}",
                    "attempt": str(box.metadata.attempt),
                    "state": "running" if box.id in ready else "exited",
                    "network": "pod",
                }
                for box in self.sandboxes.values()
            ],
            "leases": {i: box.network.ip for i, box in ready.items()},
            "links": {f"veth-{i[:9]}": i for i in ready},
            "files": [f"register/{i}" for i in (*self.sandboxes, *self.containers)],
            "foreign": [],
        }

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: Any) -> pb.RunPodSandboxResponse:
        """Make a sandbox; the same request again gives the same one."""
        meta, wanted = request.config.metadata, request.SerializeToString(deterministic=True)
        for box in self.sandboxes.values():
            if (box.metadata.uid, box.metadata.attempt) == (meta.uid, meta.attempt):
                if box.state == pb.SANDBOX_READY and self._requests[box.id] == wanted:
                    return pb.RunPodSandboxResponse(pod_sandbox_id=box.id)
                raise refused("SANDBOX_EXISTS", "a sandbox of that attempt exists", Code.ALREADY_EXISTS)
        if any(b.metadata.uid == meta.uid and b.state == pb.SANDBOX_READY for b in self.sandboxes.values()):
            self.violations.append(f"two ready sandboxes of {meta.name}")
        made = self._next("box")
        self.history.append(("sandbox", meta.uid, "", meta.attempt))
        self._requests[made] = wanted
        self.sandboxes[made] = pb.PodSandboxStatus(
            id=made,
            metadata=meta,
            state=pb.SANDBOX_READY,
            created_at=time.time_ns(),
            labels=request.config.labels,
            annotations=request.config.annotations,
            network=pb.PodSandboxNetworkStatus(ip=f"10.9.{self._count // 250}.{self._count % 250 + 1}"),
        )
        self._tell(made, pb.CONTAINER_STARTED_EVENT)
        return pb.RunPodSandboxResponse(pod_sandbox_id=made)

    async def StopPodSandbox(
        self, request: pb.StopPodSandboxRequest, context: Any
    ) -> pb.StopPodSandboxResponse:
        """End a sandbox and what runs in it."""
        box = self.sandboxes.get(request.pod_sandbox_id)
        if box is not None:
            box.state = pb.SANDBOX_NOTREADY
            box.network.ip = ""
            for container, owner in self.containers.values():
                if owner == box.id and container.state == pb.CONTAINER_RUNNING:
                    self._end(container, 137)
            self._tell(box.id, pb.CONTAINER_STOPPED_EVENT)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: Any
    ) -> pb.RemovePodSandboxResponse:
        """Remove a sandbox and its containers."""
        self._tell(request.pod_sandbox_id, pb.CONTAINER_DELETED_EVENT)
        self.sandboxes.pop(request.pod_sandbox_id, None)
        for key in [k for k, (_, owner) in self.containers.items() if owner == request.pod_sandbox_id]:
            del self.containers[key]
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: pb.PodSandboxStatusRequest, context: Any
    ) -> pb.PodSandboxStatusResponse:
        """Return a sandbox."""
        box = self.sandboxes.get(request.pod_sandbox_id)
        if box is None:
            raise refused("SANDBOX_NOT_FOUND", "no such sandbox", Code.NOT_FOUND)
        return pb.PodSandboxStatusResponse(status=box)

    async def ListPodSandbox(
        self, request: pb.ListPodSandboxRequest, context: Any
    ) -> pb.ListPodSandboxResponse:
        """List sandboxes that carry the labels."""
        wanted = request.filter.label_selector
        return pb.ListPodSandboxResponse(
            items=[
                pb.PodSandbox(
                    id=box.id,
                    metadata=box.metadata,
                    state=box.state,
                    created_at=box.created_at,
                    labels=box.labels,
                    annotations=box.annotations,
                )
                for box in self.sandboxes.values()
                if all(box.labels.get(name) == value for name, value in wanted.items())
            ]
        )

    async def CreateContainer(
        self, request: pb.CreateContainerRequest, context: Any
    ) -> pb.CreateContainerResponse:
        """Create a container; the same request again gives the same one."""
        box = self.sandboxes.get(request.pod_sandbox_id)
        if box is None:
            raise refused("SANDBOX_NOT_FOUND", "no such sandbox", Code.NOT_FOUND)
        if box.state != pb.SANDBOX_READY:
            raise refused("SANDBOX_NOT_READY", "the sandbox is not ready")
        # As containerd does, which ends with a segmentation fault instead.
        if request.sandbox_config.metadata != box.metadata:
            raise refused("SANDBOX_CONFIG_INVALID", "sandbox_config is not that of the sandbox")
        config, wanted = request.config, request.SerializeToString(deterministic=True)
        for container, owner in self.containers.values():
            if owner == box.id and container.metadata == config.metadata:
                if self._requests[container.id] == wanted:
                    return pb.CreateContainerResponse(container_id=container.id)
                raise refused("CONTAINER_EXISTS", "that attempt exists", Code.ALREADY_EXISTS)
        made = self._next("container")
        self.history.append(("container", box.metadata.uid, config.metadata.name, config.metadata.attempt))
        self._requests[made] = wanted
        status = pb.ContainerStatus(
            id=made,
            metadata=config.metadata,
            state=pb.CONTAINER_CREATED,
            created_at=time.time_ns(),
            image=config.image,
            labels=config.labels,
            annotations=config.annotations,
        )
        self.containers[made] = (status, box.id)
        return pb.CreateContainerResponse(container_id=made)

    def _container(self, container_id: str) -> tuple[pb.ContainerStatus, str]:
        found = self.containers.get(container_id)
        if found is None:
            raise refused("CONTAINER_NOT_FOUND", "no such container", Code.NOT_FOUND)
        return found

    async def StartContainer(
        self, request: pb.StartContainerRequest, context: Any
    ) -> pb.StartContainerResponse:
        """Start a created container."""
        container, box = self._container(request.container_id)
        if container.state != pb.CONTAINER_CREATED:
            raise refused("CONTAINER_NOT_CREATED", "the container was started before")
        uid, name = self._uid(container), container.metadata.name
        if any(other.metadata.name == name for other in self.running(uid)):
            self.violations.append(f"two live containers {name} of {uid}")
        container.state, container.started_at = pb.CONTAINER_RUNNING, time.time_ns()
        self.history.append(("start", uid, name, container.metadata.attempt))
        self._tell(box, pb.CONTAINER_STARTED_EVENT)
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, context: Any) -> pb.StopContainerResponse:
        """Stop a container."""
        found = self.containers.get(request.container_id)
        if found is not None and found[0].state == pb.CONTAINER_RUNNING:
            meta = found[0].metadata
            self.history.append(("stop", self._uid(found[0]), meta.name, meta.attempt))
            self._end(found[0], 143)
            self._tell(found[1], pb.CONTAINER_STOPPED_EVENT)
        return pb.StopContainerResponse()

    async def RemoveContainer(
        self, request: pb.RemoveContainerRequest, context: Any
    ) -> pb.RemoveContainerResponse:
        """Remove a container."""
        self.containers.pop(request.container_id, None)
        return pb.RemoveContainerResponse()

    async def ListContainers(
        self, request: pb.ListContainersRequest, context: Any
    ) -> pb.ListContainersResponse:
        """List containers that carry the labels."""
        wanted = request.filter.label_selector
        return pb.ListContainersResponse(
            containers=[
                pb.Container(
                    id=c.id,
                    pod_sandbox_id=box,
                    metadata=c.metadata,
                    image=c.image,
                    state=c.state,
                    labels=c.labels,
                )
                for c, box in self.containers.values()
                if all(c.labels.get(name) == value for name, value in wanted.items())
            ]
        )

    async def ContainerStatus(
        self, request: pb.ContainerStatusRequest, context: Any
    ) -> pb.ContainerStatusResponse:
        """Return a container."""
        return pb.ContainerStatusResponse(status=self._container(request.container_id)[0])

    async def ExecSync(self, request: pb.ExecSyncRequest, context: Any) -> pb.ExecSyncResponse:
        """Succeed for the command `true`."""
        container, _ = self._container(request.container_id)
        if container.state != pb.CONTAINER_RUNNING:
            raise refused("CONTAINER_NOT_RUNNING", "the container does not run")
        meta = container.metadata
        self.history.append(
            ("exec", self._uid(container), f"{meta.name} {' '.join(request.cmd)}", meta.attempt)
        )
        return pb.ExecSyncResponse(exit_code=0 if list(request.cmd)[:1] == ["true"] else 1)

    async def GetContainerEvents(
        self, request: pb.GetEventsRequest, context: Any
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        """Stream changes."""
        queue: asyncio.Queue[pb.ContainerEventResponse] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: Any) -> pb.ImageFsInfoResponse:
        """Tell of no disk."""
        return pb.ImageFsInfoResponse()

    async def ListImages(self, request: pb.ListImagesRequest, context: Any) -> pb.ListImagesResponse:
        """List what is here, each of a thousand bytes; the engine would list one without names, too."""
        named = [pb.Image(id=name, repo_tags=[name], size=1000) for name in sorted(self.images)]
        return pb.ListImagesResponse(images=[*named, pb.Image(id="nameless", size=1)])

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: Any) -> pb.ImageStatusResponse:
        """Return an image that is here."""
        name = request.image.image
        return pb.ImageStatusResponse(
            image=pb.Image(id=name, repo_tags=[name]) if name in self.images else None
        )

    async def PullImage(self, request: pb.PullImageRequest, context: Any) -> pb.PullImageResponse:
        """Pull an image that can be pulled."""
        name = request.image.image
        if name not in self.pullable:
            raise refused("IMAGE_PULL_FAILED", f"Failed to pull image {name!r}: no such host", Code.UNKNOWN)
        self.images.add(name)
        return pb.PullImageResponse(image_ref=name)


def cri_server(fake: FakeCri, socket: Path) -> GrpcServer:
    """Make a server of the fake on a socket."""
    services = pb.DESCRIPTOR.services_by_name
    return build_server(
        [
            Servicer(
                services["RuntimeService"].full_name,
                partial(pb_grpc.add_RuntimeServiceServicer_to_server, fake),
            ),
            Servicer(
                services["ImageService"].full_name, partial(pb_grpc.add_ImageServiceServicer_to_server, fake)
            ),
        ],
        listeners=[Listener(f"unix://{socket}")],
    )
