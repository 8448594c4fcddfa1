"""RuntimeService: request to engine to answer. Thin: `convert` and `sandboxes` know how."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common import failpoints
from services.common.errors import Code
from services.kubelet.cri import convert, hostlook, naming, resources, security, verbose
from services.kubelet.cri.checkpoint_service import CheckpointCalls
from services.kubelet.cri.convert import Host
from services.kubelet.cri.creation import Creation
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import (
    ContainerNotFoundError,
    CriError,
    EngineRefusedError,
    invalid,
    not_ready,
)
from services.kubelet.cri.eventhub import EventHub
from services.kubelet.cri.execution import DockerExec
from services.kubelet.cri.inflight import InFlight
from services.kubelet.cri.logs import LogKeeper
from services.kubelet.cri.ports import StreamingServer
from services.kubelet.cri.runtimestatus import StatusTaker
from services.kubelet.cri.sandboxes import Holdings, Owned, Sandboxes
from services.kubelet.cri.snapshots import Snapshots, brief
from services.kubelet.cri.statistics import Statistics
from services.kubelet.cri.stats_service import StatsCalls, chunks
from services.kubelet.cri.streaming.session import ForwardRequest, StreamRequest

RUNTIME_NAME = "docker"
API_VERSION = "v1"
_START = failpoints.step("cri.container.start")
_STOP = failpoints.step("cri.container.stop")
_REMOVE = failpoints.step("cri.container.remove")
# A caller that looks for itself asks for events without statuses: `tripod-events: brief`.
BRIEF_EVENTS = ("tripod-events", "brief")


class RuntimeService(StatsCalls, CheckpointCalls, pb_grpc.RuntimeServiceServicer):
    """Serves `runtime.v1.RuntimeService`; `docs/cri.md` lists each call and its limits."""

    def __init__(
        self,
        *,
        client: DockerClient,
        holdings: Holdings,
        inflight: InFlight[str],
        sandboxes: Sandboxes,
        creation: Creation,
        logs: LogKeeper,
        execution: DockerExec,
        streaming: StreamingServer,
        host: Host,
        status: StatusTaker,
        statistics: Statistics,
        events: EventHub,
        snapshots: Snapshots,
    ) -> None:
        super().__init__(statistics)
        self._client = client
        self._holdings = holdings
        self._inflight = inflight
        self._sandboxes = sandboxes
        self._creation = creation
        self._logs = logs
        self._execution = execution
        self._streaming = streaming
        self._host = host
        self._status = status
        self._events = events
        self._snapshots = snapshots

    async def Version(self, request: pb.VersionRequest, context: Any) -> pb.VersionResponse:
        """Return the engine's name and version."""
        version = await self._client.version()
        return pb.VersionResponse(
            version="0.1.0",
            runtime_name=RUNTIME_NAME,
            runtime_version=version["Version"],
            runtime_api_version=API_VERSION,
        )

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        """Say whether the engine answers and pods can be wired."""
        return await self._status.take(verbose=request.verbose)

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: Any) -> pb.RuntimeConfigResponse:
        """Tell the engine's cgroup driver."""
        info = await self._client.info()
        driver = pb.SYSTEMD if info.get("CgroupDriver") == "systemd" else pb.CGROUPFS
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: Any
    ) -> pb.UpdateRuntimeConfigResponse:
        """Take note of the pod CIDR, which is a setting of this server."""
        self._status.tell_pod_cidr(request.runtime_config.network_config.pod_cidr)
        return pb.UpdateRuntimeConfigResponse()

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: Any) -> pb.RunPodSandboxResponse:
        """Make a ready sandbox."""
        handler = request.runtime_handler
        if handler and handler not in self._host.runtimes:
            known = ", ".join(self._host.runtimes) or "none"
            raise invalid("runtime_handler", f"{handler!r} is no runtime of the engine; it has {known}")
        meta = request.config.metadata
        key = f"sandbox/{meta.uid}/{meta.namespace}/{meta.name}/{meta.attempt}"
        made = await self._inflight.join(key, lambda: self._sandboxes.run(request.config, handler))
        return pb.RunPodSandboxResponse(pod_sandbox_id=made)

    async def StopPodSandbox(
        self, request: pb.StopPodSandboxRequest, context: Any
    ) -> pb.StopPodSandboxResponse:
        """End all that runs in a sandbox."""
        await self._sandboxes.stop(request.pod_sandbox_id)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: Any
    ) -> pb.RemovePodSandboxResponse:
        """Remove a sandbox with its containers."""
        for container_id in await self._sandboxes.remove(request.pod_sandbox_id):
            self._logs.drop(container_id)
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: pb.PodSandboxStatusRequest, context: Any
    ) -> pb.PodSandboxStatusResponse:
        """Return one sandbox with its containers, none of it older than the timestamp."""
        taken = await self._snapshots.take(request.pod_sandbox_id)
        return pb.PodSandboxStatusResponse(
            status=taken.status,
            info=verbose.info(taken.owned[0]) if request.verbose else {},
            containers_statuses=taken.containers,
            timestamp=taken.timestamp,
        )

    async def ListPodSandbox(
        self, request: pb.ListPodSandboxRequest, context: Any
    ) -> pb.ListPodSandboxResponse:
        """List sandboxes that match the filter."""
        return pb.ListPodSandboxResponse(items=await self._listed_sandboxes(request.filter))

    async def _listed_sandboxes(self, wanted: pb.PodSandboxFilter) -> list[pb.PodSandbox]:
        owned = await self._holdings.listing(naming.SANDBOX)
        items = [
            convert.sandbox_item(item, record, wired=self._sandboxes.wired(item["Id"], record))
            for item, record in owned
        ]
        return [item for item in items if _sandbox_matches(item, wanted)]

    async def StreamPodSandboxes(
        self, request: pb.StreamPodSandboxesRequest, context: Any
    ) -> AsyncIterator[pb.StreamPodSandboxesResponse]:
        """Stream what `ListPodSandbox` lists, each once."""
        for part in chunks(await self._listed_sandboxes(request.filter)):
            yield pb.StreamPodSandboxesResponse(pod_sandboxes=part)

    async def CreateContainer(
        self, request: pb.CreateContainerRequest, context: Any
    ) -> pb.CreateContainerResponse:
        """Create a container in its sandbox."""
        return pb.CreateContainerResponse(container_id=await self._creation.create(request))

    async def StartContainer(
        self, request: pb.StartContainerRequest, context: Any
    ) -> pb.StartContainerResponse:
        """Start a container and write its output from its first byte."""
        container_id, made = await self._holdings.made(request.container_id)
        try:
            async with _START:
                await self._client.start(container_id)
        except EngineRefusedError as error:
            if error.status == 404 and "No such container" in error.message:
                raise ContainerNotFoundError(request.container_id) from error
            raise
        await _START.recorded()
        self._logs.follow(container_id, made.record.log_path, tty=made.tty)
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, context: Any) -> pb.StopContainerResponse:
        """Stop a container; an absent one is no error."""
        found = await self._holdings.find(naming.CONTAINER, request.container_id)
        if found is None:
            return pb.StopContainerResponse()
        if found[0]["State"]["Status"] == "paused":
            await self._client.unpause(found[0]["Id"])
        async with _STOP:
            if request.timeout > 0:
                await self._client.stop(found[0]["Id"], request.timeout)
            else:
                await self._client.kill(found[0]["Id"])
        await _STOP.recorded()
        return pb.StopContainerResponse()

    async def RemoveContainer(
        self, request: pb.RemoveContainerRequest, context: Any
    ) -> pb.RemoveContainerResponse:
        """Remove a container, once its output is in its file; an absent one is no error."""
        found = await self._holdings.find(naming.CONTAINER, request.container_id)
        if found is None:
            return pb.RemoveContainerResponse()
        container_id = found[0]["Id"]
        if found[0]["State"]["Status"] == "exited":
            await self._logs.drain(container_id)
        async with _REMOVE:
            await self._holdings.remove(container_id)
        self._logs.drop(container_id)
        await _REMOVE.recorded()
        return pb.RemoveContainerResponse()

    async def ListContainers(
        self, request: pb.ListContainersRequest, context: Any
    ) -> pb.ListContainersResponse:
        """List containers that match the filter."""
        return pb.ListContainersResponse(containers=await self._listed_containers(request.filter))

    async def _listed_containers(self, wanted: pb.ContainerFilter) -> list[pb.Container]:
        owned = await self._holdings.listing(naming.CONTAINER)
        items = [convert.container_item(item, record) for item, record in owned]
        return [item for item in items if _container_matches(item, wanted)]

    async def StreamContainers(
        self, request: pb.StreamContainersRequest, context: Any
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        """Stream what `ListContainers` lists, each once."""
        for part in chunks(await self._listed_containers(request.filter)):
            yield pb.StreamContainersResponse(containers=part)

    async def ContainerStatus(
        self, request: pb.ContainerStatusRequest, context: Any
    ) -> pb.ContainerStatusResponse:
        """Return one container."""
        inspected, record = await self._holdings.container(request.container_id)
        if inspected["State"]["Status"] == "exited":
            # Who learns of the end may look into the log.
            await self._logs.drain(inspected["Id"])
        status = convert.container_status(inspected, record)
        pid = int(inspected["State"]["Pid"] or 0)
        user = security.process_user(hostlook.status_fields(Path(f"/proc/{pid}/status"))) if pid else None
        if user is not None:
            status.user.CopyFrom(user)
        info = verbose.info(inspected) if request.verbose else {}
        return pb.ContainerStatusResponse(status=status, info=info)

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, context: Any
    ) -> pb.UpdateContainerResourcesResponse:
        """Change the resources of a container."""
        inspected, _ = await self._holdings.container(request.container_id)
        values = resources.engine(request.linux, negative_oom_scores=self._host.negative_oom_scores)
        values.pop("OomScoreAdj")  # The engine cannot change it later.
        await self._client.update(inspected["Id"], values)
        return pb.UpdateContainerResourcesResponse()

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, context: Any
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """Take note: the pod's cgroup is the caller's, and a pause container has no limits to change."""
        await self._holdings.sandbox(request.pod_sandbox_id)
        return pb.UpdatePodSandboxResourcesResponse()

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: Any
    ) -> pb.ReopenContainerLogResponse:
        """Open a running container's log file anew."""
        inspected, _ = await self._holdings.container(request.container_id)
        if inspected["State"]["Status"] != "running" or not self._logs.reopen(inspected["Id"]):
            raise CriError(
                f"Container {request.container_id} does not run",
                code=Code.FAILED_PRECONDITION,
                reason="CONTAINER_NOT_RUNNING",
            )
        return pb.ReopenContainerLogResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest, context: Any) -> pb.ExecSyncResponse:
        """Run a command to its end."""
        inspected, _ = await self._running(request.container_id, list(request.cmd))
        limit = float(request.timeout) if request.timeout > 0 else None
        out, err, code = await self._execution.run(inspected["Id"], tuple(request.cmd), limit)
        return pb.ExecSyncResponse(stdout=out, stderr=err, exit_code=code)

    async def Exec(self, request: pb.ExecRequest, context: Any) -> pb.ExecResponse:
        """Prepare a URL for a command."""
        inspected, _ = await self._running(request.container_id, list(request.cmd))
        if not (request.stdin or request.stdout or request.stderr):
            raise invalid("stdin, stdout, stderr", "at least one must be set")
        wanted = StreamRequest(
            container_id=inspected["Id"],
            command=tuple(request.cmd),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.ExecResponse(url=self._streaming.exec_url(wanted))

    async def Attach(self, request: pb.AttachRequest, context: Any) -> pb.AttachResponse:
        """Prepare a URL for a container's own streams; whether there is a terminal is the container's say."""
        inspected, _ = await self._running_container(request.container_id)
        if not (request.stdin or request.stdout or request.stderr):
            raise invalid("stdin, stdout, stderr", "at least one must be set")
        wanted = StreamRequest(
            container_id=inspected["Id"],
            tty=bool(inspected["Config"]["Tty"]),
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            stdin_once=bool(inspected["Config"]["StdinOnce"]),
        )
        return pb.AttachResponse(url=self._streaming.attach_url(wanted))

    async def PortForward(self, request: pb.PortForwardRequest, context: Any) -> pb.PortForwardResponse:
        """Prepare a URL for connections to a sandbox's ports."""
        inspected, record = await self._holdings.sandbox(request.pod_sandbox_id)
        wired = self._sandboxes.wired(inspected["Id"], record)
        if convert.sandbox_state(inspected["State"]["Status"], wired=wired) != pb.SANDBOX_READY:
            raise not_ready(request.pod_sandbox_id)
        for port in request.port:
            if not 1 <= port <= 65535:
                raise invalid("port", f"{port} is not from 1 to 65535")
        wanted = ForwardRequest(sandbox_id=inspected["Id"], ports=tuple(request.port))
        return pb.PortForwardResponse(url=self._streaming.forward_url(wanted))

    async def _running(self, container_id: str, command: list[str]) -> Owned:
        if not command:
            raise invalid("cmd", "must not be empty")
        return await self._running_container(container_id)

    async def _running_container(self, container_id: str) -> Owned:
        inspected, record = await self._holdings.container(container_id)
        if inspected["State"]["Status"] != "running":
            raise CriError(
                f"Container {container_id} does not run",
                code=Code.FAILED_PRECONDITION,
                reason="CONTAINER_NOT_RUNNING",
            )
        return inspected, record

    async def GetContainerEvents(
        self, request: pb.GetEventsRequest, context: Any
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        """Stream what happens to containers and sandboxes of ours, with the pod as it is then or later."""
        short = BRIEF_EVENTS in {(key, value) for key, value in context.invocation_metadata() or ()}
        async for happenings in self._events.read():
            pods: dict[str, tuple[pb.PodSandboxStatus, tuple[pb.ContainerStatus, ...]]] = {}
            for happening in happenings:
                subject = happening.subject
                if short:
                    pods[subject.sandbox_id] = (brief(subject), ())
                elif subject.sandbox_id not in pods:
                    pods[subject.sandbox_id] = await self._snapshots.of_event(subject)
                status, containers = pods[subject.sandbox_id]
                yield pb.ContainerEventResponse(
                    container_id=subject.container_id,
                    container_event_type=pb.ContainerEventType.ValueType(happening.stage),
                    created_at=happening.time,
                    pod_sandbox_status=status,
                    containers_statuses=containers,
                )


def _sandbox_matches(item: pb.PodSandbox, wanted: pb.PodSandboxFilter) -> bool:
    if wanted.id and not item.id.startswith(wanted.id):
        return False
    if wanted.HasField("state") and item.state != wanted.state.state:
        return False
    return _labels_match(item.labels, wanted.label_selector)


def _container_matches(item: pb.Container, wanted: pb.ContainerFilter) -> bool:
    if wanted.id and not item.id.startswith(wanted.id):
        return False
    if wanted.pod_sandbox_id and not item.pod_sandbox_id.startswith(wanted.pod_sandbox_id):
        return False
    if wanted.HasField("state") and item.state != wanted.state.state:
        return False
    return _labels_match(item.labels, wanted.label_selector)


def _labels_match(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())
