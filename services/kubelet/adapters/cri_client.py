"""The runtime over the CRI. Implements the kubelet's `Runtime`; works with any CRI v1 server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.errors import Code, RemoteError, TripodError
from services.common.grpcclient import call, stream
from services.kubelet.adapters import cri_security
from services.kubelet.adapters.runtime_measures import RuntimeMeasures
from services.kubelet.core.audit import Holdings
from services.kubelet.core.model import ContainerId, Pod, PodUid, SandboxId
from services.kubelet.core.node import RuntimeFeatures, RuntimeHandler
from services.kubelet.core.node_images import Image
from services.kubelet.core.observed import ObservedContainer, ObservedPod, ObservedSandbox, RuntimeState
from services.kubelet.core.pull_secrets import Credential
from services.kubelet.core.spec_hash import spec_hash
from services.kubelet.core.stream_options import Streams
from services.kubelet.core.volumes import Mount
from services.kubelet.errors import RuntimeListIncompleteError
from services.kubelet.ports import ContainerConfig, RuntimeCondition, RuntimeStatus, SandboxConfig

POD_UID_LABEL = "io.kubernetes.pod.uid"
# What a lost store takes pods back from.
MANIFEST_ANNOTATION = "tripod.io/pod"
# As the original kubelet has them, so that others read them as they do on its nodes.
HASH_ANNOTATION = "io.kubernetes.container.hash"
RESTARTS_ANNOTATION = "io.kubernetes.container.restartCount"
MESSAGE_PATH_ANNOTATION = "io.kubernetes.container.terminationMessagePath"
MESSAGE_POLICY_ANNOTATION = "io.kubernetes.container.terminationMessagePolicy"
LEDGER_INFO = "tripod.io/ledger"
_STATES = {
    pb.CONTAINER_CREATED: RuntimeState.CREATED,
    pb.CONTAINER_RUNNING: RuntimeState.RUNNING,
    pb.CONTAINER_EXITED: RuntimeState.EXITED,
}
_DEADLINE_SECONDS = 30.0
_STATUS_SECONDS = 15.0
_CREATE_SECONDS = 240.0
_PULL_SECONDS = 1800.0

# Our own CRI server leaves statuses out of events then, for we look anyway; others pay it no heed.
_BRIEF = (("tripod-events", "brief"),)


class CriRuntime:
    """Calls a CRI server over one channel, which its opener closes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._runtime = pb_grpc.RuntimeServiceStub(channel)
        self._images = pb_grpc.ImageServiceStub(channel)
        self.measures = RuntimeMeasures()
        # Ids of sandboxes and of containers at the last look, of pods that had any.
        self._known: dict[PodUid, tuple[frozenset[str], frozenset[str]]] = {}

    async def observe(self, uid: PodUid) -> ObservedPod:
        """Return all of a pod that is there: what is independent is asked for at once.

        What was there before is gone when the runtime says so of the thing itself: an
        absence from a list alone makes nothing start again. Raises `RuntimeListIncompleteError`.
        """
        selector = {POD_UID_LABEL: uid}
        wanted_sandboxes = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=selector))
        wanted = pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=selector))
        boxes, containers = await asyncio.gather(
            self._call(self._runtime.ListPodSandbox, wanted_sandboxes),
            self._call(self._runtime.ListContainers, wanted),
        )
        await self._confirm(uid, {item.id for item in boxes.items}, containers.containers)
        looks = (
            asyncio.gather(*(self.sandbox(SandboxId(item.id)) for item in boxes.items)),
            asyncio.gather(*(self._container(item) for item in containers.containers)),
        )
        seen_boxes, seen = await asyncio.gather(*looks)
        return ObservedPod(uid, sandboxes=_newest(seen_boxes), containers=_newest_containers(seen))

    async def _confirm(self, uid: PodUid, sandboxes: set[str], containers: Sequence[pb.Container]) -> None:
        """Ask of each thing that is missing now whether it is gone; remember those that are there."""
        before_sandboxes, before_containers = self._known.get(uid, (frozenset(), frozenset()))
        listed = frozenset(item.id for item in containers)
        owners = {item.pod_sandbox_id for item in containers}
        for missing in (before_sandboxes | owners) - sandboxes:
            request = pb.PodSandboxStatusRequest(pod_sandbox_id=missing)
            if await self._exists(self._runtime.PodSandboxStatus, request):
                raise RuntimeListIncompleteError(missing)
        for missing in before_containers - listed:
            if await self._exists(
                self._runtime.ContainerStatus, pb.ContainerStatusRequest(container_id=missing)
            ):
                raise RuntimeListIncompleteError(missing)
        if sandboxes or listed:
            self._known[uid] = (frozenset(sandboxes), listed)
        else:
            self._known.pop(uid, None)

    async def _exists(self, method: Any, request: Any) -> bool:
        try:
            await self._call(method, request)
        except RemoteError as error:
            if error.code is Code.NOT_FOUND:
                return False
            raise
        return True

    async def _call(self, method: Any, request: Any, *, seconds: float = _DEADLINE_SECONDS) -> Any:
        with self.measures.operation(type(request).__name__):
            return await call(method, request, deadline_seconds=seconds)

    async def sandbox(self, sandbox: SandboxId) -> ObservedSandbox:
        """Return one sandbox."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
        status = (await self._call(self._runtime.PodSandboxStatus, request)).status
        addresses = [status.network.ip, *(more.ip for more in status.network.additional_ips)]
        return ObservedSandbox(
            id=SandboxId(status.id),
            attempt=status.metadata.attempt,
            ready=status.state == pb.SANDBOX_READY,
            addresses=tuple(address for address in addresses if address),
        )

    async def _container(self, item: pb.Container) -> ObservedContainer:
        seen = await self.container(ContainerId(item.id))
        return replace(seen, sandbox_id=SandboxId(item.pod_sandbox_id))

    async def container(self, container: ContainerId) -> ObservedContainer:
        """Return one container; the CRI's status does not say in which sandbox it is."""
        request = pb.ContainerStatusRequest(container_id=container)
        status = (await self._call(self._runtime.ContainerStatus, request)).status
        return ObservedContainer(
            id=ContainerId(status.id),
            name=status.metadata.name,
            attempt=status.metadata.attempt,
            state=_STATES.get(status.state, RuntimeState.UNKNOWN),
            sandbox_id=SandboxId(""),
            image=status.image.image,
            image_id=status.image_id or status.image_ref,
            started_at=_time(status.started_at),
            finished_at=_time(status.finished_at),
            exit_code=status.exit_code,
            reason=status.reason,
            message=status.message,
            log_path=status.log_path,
            spec_hash=status.annotations.get(HASH_ANNOTATION, ""),
        )

    async def list_pods(self) -> Mapping[PodUid, ObservedPod]:
        """Return every pod that is there."""
        sandboxes = (await self._call(self._runtime.ListPodSandbox, pb.ListPodSandboxRequest())).items
        containers = (await self._call(self._runtime.ListContainers, pb.ListContainersRequest())).containers
        found: dict[PodUid, ObservedPod] = {}
        # A container may have outlived its sandbox: it counts as well.
        for uid in dict.fromkeys([*(i.metadata.uid for i in sandboxes), *map(_uid, containers)]):
            boxes = [i for i in sandboxes if i.metadata.uid == uid]
            meta = boxes[0].metadata if boxes else None
            found[PodUid(uid)] = ObservedPod(
                uid=PodUid(uid),
                namespace=meta.namespace if meta else "",
                name=meta.name if meta else "",
                sandboxes=_newest([_light_sandbox(item) for item in boxes]),
                containers=_newest_containers([_light(c) for c in containers if _uid(c) == uid]),
            )
        return found

    async def manifests(self) -> Mapping[PodUid, str]:
        """Return the manifest of each pod that is there."""
        sandboxes = (await self._call(self._runtime.ListPodSandbox, pb.ListPodSandboxRequest())).items
        oldest_first = sorted(sandboxes, key=lambda item: item.metadata.attempt)
        return {PodUid(i.metadata.uid): i.annotations.get(MANIFEST_ANNOTATION, "") for i in oldest_first}

    async def ledger(self) -> Holdings | None:
        """Return what our own CRI server holds; another one tells nothing of the kind."""
        answer = await self._call(self._runtime.Status, pb.StatusRequest(verbose=True))
        text = answer.info.get(LEDGER_INFO, "")
        return Holdings(**json.loads(text)) if text else None

    async def create_sandbox(self, config: SandboxConfig) -> SandboxId:
        """Make a ready sandbox."""
        request = pb.RunPodSandboxRequest(
            config=_sandbox_config(config), runtime_handler=config.runtime_handler
        )
        answer = await self._call(self._runtime.RunPodSandbox, request, seconds=_CREATE_SECONDS)
        return SandboxId(answer.pod_sandbox_id)

    async def stop_sandbox(self, sandbox: SandboxId) -> None:
        """End a sandbox."""
        request = pb.StopPodSandboxRequest(pod_sandbox_id=sandbox)
        await self._call(self._runtime.StopPodSandbox, request, seconds=_CREATE_SECONDS)

    async def remove_sandbox(self, sandbox: SandboxId) -> None:
        """Remove a sandbox and its containers."""
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        await self._call(self._runtime.RemovePodSandbox, request, seconds=_CREATE_SECONDS)
        self._expect_no_more(sandbox)

    def _expect_no_more(self, sandbox: SandboxId) -> None:
        """Forget a sandbox, and with the last of a pod the pod: nobody looks at it again."""
        for uid, (sandboxes, containers) in self._known.items():
            if sandbox in sandboxes:
                self._known[uid] = (sandboxes - {sandbox}, containers)
                if sandboxes == {sandbox}:
                    del self._known[uid]
                return

    async def image_present(self, image: str) -> bool:
        """Tell whether an image is there."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        return bool((await self._call(self._images.ImageStatus, request)).HasField("image"))

    async def images(self) -> Sequence[Image]:
        """Return every image that is there."""
        answer = await self._call(self._images.ListImages, pb.ListImagesRequest())
        return [
            Image(item.id, item.size, tuple(item.repo_digests), tuple(item.repo_tags))
            for item in answer.images
        ]

    async def image_user(self, image: str) -> str:
        """Return as whom an image runs."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        found = (await self._call(self._images.ImageStatus, request)).image
        return str(found.uid.value) if found.HasField("uid") else str(found.username)

    async def pull_image(self, image: str, credential: Credential | None = None) -> None:
        """Pull an image."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        if credential is not None:
            request.auth.username, request.auth.password = credential.username, credential.password
        await self._call(self._images.PullImage, request, seconds=_PULL_SECONDS)

    async def recursive_read_only(self) -> bool:
        """Tell what the runtime's default handler can."""
        answer = await self._call(self._runtime.Status, pb.StatusRequest(), seconds=_STATUS_SECONDS)
        return any(h.features.recursive_read_only_mounts for h in answer.runtime_handlers if not h.name)

    async def create_container(self, sandbox: SandboxId, config: ContainerConfig) -> ContainerId:
        """Create a container."""
        request = pb.CreateContainerRequest(
            pod_sandbox_id=sandbox,
            config=container_config(config),
            sandbox_config=_sandbox_config(config.sandbox),
        )
        answer = await self._call(self._runtime.CreateContainer, request, seconds=_CREATE_SECONDS)
        return ContainerId(answer.container_id)

    async def start_container(self, container: ContainerId) -> None:
        """Start a created container."""
        request = pb.StartContainerRequest(container_id=container)
        await self._call(self._runtime.StartContainer, request, seconds=_CREATE_SECONDS)

    async def stop_container(self, container: ContainerId, grace_seconds: int) -> None:
        """Stop a container."""
        request = pb.StopContainerRequest(container_id=container, timeout=grace_seconds)
        await self._call(self._runtime.StopContainer, request, seconds=grace_seconds + _CREATE_SECONDS)

    async def remove_container(self, container: ContainerId) -> None:
        """Remove a container."""
        request = pb.RemoveContainerRequest(container_id=container)
        await self._call(self._runtime.RemoveContainer, request, seconds=_CREATE_SECONDS)

    async def writable_layers(self) -> Mapping[ContainerId, int]:
        """Return the sizes of writable layers."""
        answer = await self._call(self._runtime.ListContainerStats, pb.ListContainerStatsRequest())
        return {
            ContainerId(item.attributes.id): item.writable_layer.used_bytes.value
            for item in answer.stats
            if item.HasField("writable_layer")
        }

    async def reopen_log(self, container: ContainerId) -> None:
        """Have a log opened anew."""
        request = pb.ReopenContainerLogRequest(container_id=container)
        await self._call(self._runtime.ReopenContainerLog, request)

    async def exec_sync(
        self, container: ContainerId, command: Sequence[str], timeout_seconds: int
    ) -> tuple[int, bytes]:
        """Run a command to its end."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout_seconds)
        answer = await self._call(self._runtime.ExecSync, request, seconds=timeout_seconds + 5.0)
        return answer.exit_code, answer.stdout + answer.stderr

    async def exec_url(self, container: ContainerId, command: Sequence[str], streams: Streams) -> str:
        """Return a URL at which a command can be run, once."""
        request = pb.ExecRequest(
            container_id=container,
            cmd=command,
            tty=streams.tty,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr and not streams.tty,
        )
        return str((await self._call(self._runtime.Exec, request)).url)

    async def attach_url(self, container: ContainerId, streams: Streams) -> str:
        """Return a URL at which a container's own streams can be had, once."""
        request = pb.AttachRequest(
            container_id=container,
            tty=streams.tty,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr and not streams.tty,
        )
        return str((await self._call(self._runtime.Attach, request)).url)

    async def port_forward_url(self, sandbox: SandboxId, ports: Sequence[int]) -> str:
        """Return a URL at which ports of a sandbox can be reached, once."""
        request = pb.PortForwardRequest(pod_sandbox_id=sandbox, port=ports)
        return str((await self._call(self._runtime.PortForward, request)).url)

    async def checkpoint(self, container: ContainerId, path: Path, timeout_seconds: int) -> None:
        """Write a container's state to a file."""
        request = pb.CheckpointContainerRequest(
            container_id=container, location=str(path), timeout=timeout_seconds
        )
        seconds = float(timeout_seconds or _CREATE_SECONDS)
        await self._call(self._runtime.CheckpointContainer, request, seconds=seconds)

    async def changes(self) -> AsyncIterator[PodUid]:
        """Yield each pod of which something changed."""
        async with stream(self._runtime.GetContainerEvents, pb.GetEventsRequest(), metadata=_BRIEF) as events:
            async for event in events:
                yield PodUid(event.pod_sandbox_status.metadata.uid)

    async def tell_pod_cidr(self, cidr: str) -> None:
        """Tell which addresses pods have. A runtime whose network comes from elsewhere may leave it."""
        network = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=cidr))
        await self._call(
            self._runtime.UpdateRuntimeConfig, pb.UpdateRuntimeConfigRequest(runtime_config=network)
        )

    async def version(self) -> str:
        """Return name and version."""
        answer = await self._call(self._runtime.Version, pb.VersionRequest())
        return f"{answer.runtime_name}://{answer.runtime_version}"

    async def image_directory(self) -> str:
        """Return where images and containers lie."""
        try:
            answer = await self._call(self._images.ImageFsInfo, pb.ImageFsInfoRequest())
        except TripodError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED):
                raise
            return ""  # Not every runtime tells, and pods run none the less.
        return next((str(found.fs_id.mountpoint) for found in answer.image_filesystems), "")

    async def status(self) -> RuntimeStatus:
        """Return how the runtime fares, and what it can."""
        answer = await self._call(self._runtime.Status, pb.StatusRequest(), seconds=_STATUS_SECONDS)
        handlers = {h.name: h.features.recursive_read_only_mounts for h in answer.runtime_handlers}
        return RuntimeStatus(
            [RuntimeCondition(c.type, c.status, c.message) for c in answer.status.conditions],
            RuntimeFeatures(
                tuple(RuntimeHandler(name, able) for name, able in sorted(handlers.items())),
                answer.features.supplemental_groups_policy,
            ),
        )


def _newest(sandboxes: Sequence[ObservedSandbox]) -> tuple[ObservedSandbox, ...]:
    return tuple(sorted(sandboxes, key=lambda s: s.attempt, reverse=True))


def _newest_containers(containers: Sequence[ObservedContainer]) -> tuple[ObservedContainer, ...]:
    return tuple(sorted(containers, key=lambda c: c.attempt, reverse=True))


def _uid(item: pb.Container) -> str:
    return str(item.labels.get(POD_UID_LABEL, ""))


def _light_sandbox(item: pb.PodSandbox) -> ObservedSandbox:
    return ObservedSandbox(SandboxId(item.id), item.metadata.attempt, item.state == pb.SANDBOX_READY)


def _light(item: pb.Container) -> ObservedContainer:
    return ObservedContainer(
        id=ContainerId(item.id),
        name=item.metadata.name,
        attempt=item.metadata.attempt,
        state=_STATES.get(item.state, RuntimeState.UNKNOWN),
        sandbox_id=SandboxId(item.pod_sandbox_id),
    )


def _time(nanoseconds: int) -> datetime | None:
    if nanoseconds <= 0:
        return None
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=nanoseconds // 1000)


def _labels(pod: Pod) -> dict[str, str]:
    names = {"io.kubernetes.pod.name": pod.name, "io.kubernetes.pod.namespace": pod.namespace}
    return {**pod.labels, **names, POD_UID_LABEL: pod.uid}


def _sandbox_config(config: SandboxConfig) -> pb.PodSandboxConfig:
    pod = config.pod
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name=pod.name, uid=pod.uid, namespace=pod.namespace, attempt=config.attempt
        ),
        hostname=config.hostname,
        log_directory=config.log_directory,
        dns_config=pb.DNSConfig(
            servers=config.dns.servers, searches=config.dns.searches, options=config.dns.options
        ),
        port_mappings=cri_security.port_mappings(pod),
        linux=cri_security.sandbox_linux(pod),
        labels=_labels(pod),
        annotations={
            **pod.annotations,
            **({MANIFEST_ANNOTATION: config.manifest} if config.manifest else {}),
        },
    )


_PROPAGATION = {
    "None": pb.PROPAGATION_PRIVATE,
    "HostToContainer": pb.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": pb.PROPAGATION_BIDIRECTIONAL,
}


def _mount(mount: Mount) -> pb.Mount:
    made = pb.Mount(
        host_path=mount.host_path,
        container_path=mount.container_path,
        readonly=mount.read_only,
        propagation=_PROPAGATION[mount.propagation],
        recursive_read_only=mount.recursive_read_only,
        image_sub_path=mount.image_sub_path,
    )
    if mount.image:
        made.image.image = made.image.user_specified_image = mount.image
    return made


def container_config(config: ContainerConfig) -> pb.ContainerConfig:
    """Build what a container is made from."""
    wanted = config.resources
    made = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=config.container.name, attempt=config.attempt),
        image=pb.ImageSpec(image=config.container.image, user_specified_image=config.container.image),
        command=config.command,
        args=config.args,
        working_dir=config.container.working_dir,
        envs=[pb.KeyValue(key=key, value=value.encode()) for key, value in config.environment.items()],
        mounts=[_mount(mount) for mount in config.mounts],
        labels={**_labels(config.pod), "io.kubernetes.container.name": config.container.name},
        log_path=config.log_path,
        annotations=_container_annotations(config),
        tty=config.container.tty,
        stdin=config.container.stdin,
        stdin_once=config.container.stdin_once,
        stop_signal=_signal(config.container.lifecycle.stop_signal),
    )
    resources = made.linux.resources
    resources.cpu_shares = wanted.cpu_shares
    resources.cpu_quota = wanted.cpu_quota_microseconds
    resources.cpu_period = wanted.cpu_period_microseconds if wanted.cpu_quota_microseconds else 0
    resources.memory_limit_in_bytes = wanted.memory_limit_bytes
    resources.oom_score_adj = wanted.oom_score_adj
    context = made.linux.security_context
    context.CopyFrom(cri_security.container_context(config.pod, config.rights))
    if config.target:
        context.namespace_options.pid = pb.TARGET
        context.namespace_options.target_id = config.target
    return made


def _container_annotations(config: ContainerConfig) -> dict[str, str]:
    container = config.container
    return {
        HASH_ANNOTATION: spec_hash(container),
        RESTARTS_ANNOTATION: str(config.attempt),
        MESSAGE_PATH_ANNOTATION: container.termination_message_path,
        MESSAGE_POLICY_ANNOTATION: container.termination_message_policy.value,
    }


def _signal(name: str) -> pb.Signal.ValueType:
    """Return a signal as the CRI names it: SIGRTMIN+1 is `SIGNAL_SIGRTMINPLUS1`."""
    if not name:
        return pb.SIGNAL_RUNTIME_DEFAULT
    return pb.Signal.Value(f"SIGNAL_{name.replace('+', 'PLUS').replace('-', 'MINUS')}")
