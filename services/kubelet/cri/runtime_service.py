"""RuntimeService: request to engine to answer. Thin: `convert` and `sandboxes` know how."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common import failpoints
from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import Code
from services.kubelet.cri import convert, imagecheck, naming
from services.kubelet.cri.convert import Host
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import ContainerNotFoundError, CriError, EngineRefusedError, invalid
from services.kubelet.cri.execution import DockerExec
from services.kubelet.cri.imagevolumes import ImageVolumes
from services.kubelet.cri.inflight import InFlight
from services.kubelet.cri.ledger import LEDGER_INFO, LedgerTaker
from services.kubelet.cri.logs import LogKeeper
from services.kubelet.cri.naming import Record
from services.kubelet.cri.ports import PodNetwork, StreamingServer
from services.kubelet.cri.register import Register, digest
from services.kubelet.cri.sandboxes import Holdings, Owned, Sandboxes
from services.kubelet.cri.streaming.session import ForwardRequest, StreamRequest

RUNTIME_NAME = "docker"
API_VERSION = "v1"
_START = failpoints.step("cri.container.start")
_STOP = failpoints.step("cri.container.stop")
_REMOVE = failpoints.step("cri.container.remove")
_EVENTS = {
    "create": pb.CONTAINER_CREATED_EVENT,
    "start": pb.CONTAINER_STARTED_EVENT,
    "die": pb.CONTAINER_STOPPED_EVENT,
    "destroy": pb.CONTAINER_DELETED_EVENT,
}


class RuntimeService(pb_grpc.RuntimeServiceServicer):
    """Serves `runtime.v1.RuntimeService`; what is not here answers `UNIMPLEMENTED`."""

    def __init__(
        self,
        *,
        client: DockerClient,
        streams: EngineStreams,
        holdings: Holdings,
        register: Register,
        inflight: InFlight[str],
        sandboxes: Sandboxes,
        network: PodNetwork,
        logs: LogKeeper,
        execution: DockerExec,
        streaming: StreamingServer,
        host: Host,
        ledger: LedgerTaker,
        image_volumes: ImageVolumes,
        clock: Clock,
    ) -> None:
        self._client = client
        self._streams = streams
        self._holdings = holdings
        self._register = register
        self._inflight = inflight
        self._sandboxes = sandboxes
        self._network = network
        self._logs = logs
        self._execution = execution
        self._streaming = streaming
        self._host = host
        self._ledger = ledger
        self._image_volumes = image_volumes
        self._clock = clock

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
        try:
            await self._client.version()
            runtime = pb.RuntimeCondition(type="RuntimeReady", status=True)
        except CriError as error:
            runtime = pb.RuntimeCondition(
                type="RuntimeReady", status=False, reason="EngineUnreachable", message=error.message
            )
        fault = self._network.ready()
        network = pb.RuntimeCondition(
            type="NetworkReady",
            status=fault is None,
            reason="" if fault is None else "NetworkNotReady",
            message=fault or "",
        )
        info = {LEDGER_INFO: json.dumps(await self._ledger.take())} if request.verbose else {}
        return pb.StatusResponse(status=pb.RuntimeStatus(conditions=[runtime, network]), info=info)

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: Any) -> pb.RuntimeConfigResponse:
        """Tell the engine's cgroup driver."""
        info = await self._client.info()
        driver = pb.SYSTEMD if info.get("CgroupDriver") == "systemd" else pb.CGROUPFS
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: Any
    ) -> pb.UpdateRuntimeConfigResponse:
        """Accept: the pod network's CIDR is a setting of this server."""
        return pb.UpdateRuntimeConfigResponse()

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: Any) -> pb.RunPodSandboxResponse:
        """Make a ready sandbox."""
        if request.runtime_handler:
            raise invalid("runtime_handler", f"{request.runtime_handler!r} is not known; leave it empty")
        meta = request.config.metadata
        key = f"sandbox/{meta.uid}/{meta.namespace}/{meta.name}/{meta.attempt}"
        made = await self._inflight.join(key, lambda: self._sandboxes.run(request.config))
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
        """Return one sandbox."""
        inspected, record = await self._holdings.sandbox(request.pod_sandbox_id)
        addresses = self._sandboxes.addresses(inspected["Id"], record)
        status = convert.sandbox_status(inspected, record, addresses)
        info = {"pid": str(inspected["State"]["Pid"])} if request.verbose else {}
        return pb.PodSandboxStatusResponse(status=status, info=info)

    async def ListPodSandbox(
        self, request: pb.ListPodSandboxRequest, context: Any
    ) -> pb.ListPodSandboxResponse:
        """List sandboxes that match the filter."""
        owned = await self._holdings.listing(naming.SANDBOX)
        items = [
            convert.sandbox_item(item, record, wired=self._sandboxes.wired(item["Id"], record))
            for item, record in owned
        ]
        return pb.ListPodSandboxResponse(
            items=[item for item in items if _sandbox_matches(item, request.filter)]
        )

    async def CreateContainer(
        self, request: pb.CreateContainerRequest, context: Any
    ) -> pb.CreateContainerResponse:
        """Create a container in its sandbox."""
        (inspected, sandbox), image = await asyncio.gather(
            self._holdings.sandbox(request.pod_sandbox_id),
            self._client.image(request.config.image.image),
        )
        wired = self._sandboxes.wired(inspected["Id"], sandbox)
        if convert.sandbox_state(inspected["State"]["Status"], wired=wired) != pb.SANDBOX_READY:
            raise _not_ready(request.pod_sandbox_id)
        record = convert.container_record(request.config, inspected["Id"], sandbox)
        if image is not None:  # Else the engine says so.
            imagecheck.check(image, request.config.working_dir)
        volumes = await self._image_volumes.prepare(request.config.mounts)
        record = dataclasses.replace(record, image_mounts={path: v.told for path, v in volumes.items()})
        resolv_conf = self._sandboxes.resolv_conf(inspected["Id"])
        config = convert.container_config(
            request.config,
            record,
            sandbox,
            self._host,
            resolv_conf=str(resolv_conf) if resolv_conf.exists() else "",
            image_mounts={path: volume.mount for path, volume in volumes.items()},
        )
        key = f"container/{inspected['Id']}/{record.name}/{record.attempt}"
        made = await self._inflight.join(key, lambda: self._create(config, record, sandbox))
        return pb.CreateContainerResponse(container_id=made)

    async def _create(self, config: Mapping[str, Any], record: Record, sandbox: Record) -> str:
        """Create, or return the one that was made by the same request before.

        One that was made otherwise and never started makes room.
        """
        try:
            return await self._holdings.create(config, record, sandbox)
        except EngineRefusedError as error:
            found = await self._holdings.attempt(record, sandbox) if error.status == 409 else None
            if found is None:
                raise
            if found[0]["Config"]["Labels"].get(naming.DIGEST_LABEL) == digest(config):
                return str(found[0]["Id"])
            if found[0]["State"]["Status"] != "created":
                raise
            await self._holdings.remove(found[0]["Id"])
            return await self._holdings.create(config, record, sandbox)

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
        owned = await self._holdings.listing(naming.CONTAINER)
        items = [convert.container_item(item, record) for item, record in owned]
        matching = [item for item in items if _container_matches(item, request.filter)]
        return pb.ListContainersResponse(containers=matching)

    async def ContainerStatus(
        self, request: pb.ContainerStatusRequest, context: Any
    ) -> pb.ContainerStatusResponse:
        """Return one container."""
        inspected, record = await self._holdings.container(request.container_id)
        info = {"pid": str(inspected["State"]["Pid"])} if request.verbose else {}
        return pb.ContainerStatusResponse(status=convert.container_status(inspected, record), info=info)

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, context: Any
    ) -> pb.UpdateContainerResourcesResponse:
        """Change the resources of a container."""
        inspected, _ = await self._holdings.container(request.container_id)
        values = convert.resources(request.linux, self._host)
        values.pop("OomScoreAdj")  # The engine cannot change it later.
        await self._client.update(inspected["Id"], values)
        return pb.UpdateContainerResourcesResponse()

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
            raise _not_ready(request.pod_sandbox_id)
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
        """Stream what happens to containers and sandboxes of ours."""
        filters = {
            "type": ["container"],
            "event": list(_EVENTS),
            "label": [f"{naming.OWNER_LABEL}={self._host.owner}"],
        }
        async for event in self._streams.events(filters):
            made = self._event(event)
            if made is not None:
                yield made

    def _event(self, event: Mapping[str, Any]) -> pb.ContainerEventResponse | None:
        attributes = event["Actor"]["Attributes"]
        record = self._register.recognise(event["id"], attributes, attributes.get("name", ""))
        kind = _EVENTS.get(str(event.get("Action")))
        if record is None or kind is None:
            return None
        pod = Record(
            kind=naming.SANDBOX,
            name=attributes.get("io.kubernetes.pod.name", ""),
            namespace=attributes.get("io.kubernetes.pod.namespace", ""),
            uid=attributes.get("io.kubernetes.pod.uid", ""),
        )
        sandbox_id = event["id"] if record.kind == naming.SANDBOX else record.sandbox_id
        return pb.ContainerEventResponse(
            container_id=event["id"],
            container_event_type=kind,
            created_at=int(event.get("timeNano") or unix_nanoseconds(self._clock.now())),
            pod_sandbox_status=pb.PodSandboxStatus(id=sandbox_id, metadata=convert.sandbox_metadata(pod)),
        )


def _not_ready(sandbox_id: str) -> CriError:
    return CriError(
        f"Pod sandbox {sandbox_id} is not ready", code=Code.FAILED_PRECONDITION, reason="SANDBOX_NOT_READY"
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
