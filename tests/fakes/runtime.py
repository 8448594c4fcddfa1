"""A runtime of values. Refuses what a runtime refuses; passes the same contract suite as the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.common.errors import Code, TripodError
from services.kubelet.core.audit import Holdings
from services.kubelet.core.model import ContainerId, PodUid, SandboxId
from services.kubelet.core.node_images import Image
from services.kubelet.core.observed import ObservedContainer, ObservedPod, ObservedSandbox, RuntimeState
from services.kubelet.core.pull_secrets import Credential
from services.kubelet.core.spec_hash import spec_hash
from services.kubelet.core.stream_options import Streams
from services.kubelet.ports import ContainerConfig, RuntimeCondition, RuntimeStatus, SandboxConfig

START = datetime(2026, 1, 1, tzinfo=UTC)


def refused(reason: str, message: str, code: Code = Code.FAILED_PRECONDITION) -> TripodError:
    """Make the error of a refused call."""
    return TripodError(message, code=code, reason=reason)


class FakeRuntime:
    """Implements the kubelet's `Runtime` in memory. `images` are those that are here or can be pulled."""

    def __init__(self, present: Sequence[str] = (), pullable: Sequence[str] = ()) -> None:
        self.present = set(present)
        self.pullable = set(pullable)
        self.users: dict[str, str] = {}
        self.layers: dict[ContainerId, int] = {}
        self.private: dict[str, Credential] = {}
        self.asked_as: list[Credential | None] = []
        self.down = False
        self.calls: list[str] = []
        self.commands: list[tuple[str, ...]] = []
        self.stops: list[tuple[str, int]] = []
        self.made: list[ContainerConfig] = []
        self._pods: dict[PodUid, ObservedPod] = {}
        self._configs: dict[str, SandboxConfig | ContainerConfig] = {}
        self._manifests: dict[PodUid, str] = {}
        self._watchers: set[asyncio.Queue[PodUid]] = set()
        self._count = 0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.down:
            raise refused("RUNTIME_DOWN", "the runtime does not answer", Code.UNAVAILABLE)

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _now(self) -> datetime:
        return START + timedelta(seconds=self._count)

    def _keep(self, pod: ObservedPod) -> None:
        boxes = sorted(pod.sandboxes, key=lambda b: b.attempt, reverse=True)
        containers = sorted(pod.containers, key=lambda c: c.attempt, reverse=True)
        self._pods[pod.uid] = replace(pod, sandboxes=tuple(boxes), containers=tuple(containers))
        for watcher in self._watchers:
            watcher.put_nowait(pod.uid)

    def _of_sandbox(self, sandbox: SandboxId) -> ObservedPod | None:
        return next((p for p in self._pods.values() if any(b.id == sandbox for b in p.sandboxes)), None)

    def _of_container(self, container: ContainerId) -> ObservedPod | None:
        return next((p for p in self._pods.values() if any(c.id == container for c in p.containers)), None)

    def end(self, uid: PodUid, name: str, exit_code: int) -> None:
        """End a running container of a pod, as a crash does."""
        pod = self._pods[uid]
        ended = [
            self._ended(c, exit_code) if c.name == name and c.state is RuntimeState.RUNNING else c
            for c in pod.containers
        ]
        self._keep(replace(pod, containers=tuple(ended)))

    def _ended(self, container: ObservedContainer, exit_code: int) -> ObservedContainer:
        self._next()
        return replace(
            container, state=RuntimeState.EXITED, exit_code=exit_code, finished_at=self._now(), reason="Error"
        )

    def rob(self, uid: PodUid) -> None:
        """Remove a pod's sandboxes and leave its containers, as somebody at the engine can."""
        self._keep(replace(self._pods[uid], sandboxes=()))

    async def observe(self, uid: PodUid) -> ObservedPod:
        """Return all of a pod."""
        self._called("observe")
        return self._pods.get(uid, ObservedPod(uid))

    async def sandbox(self, sandbox: SandboxId) -> ObservedSandbox:
        """Return one sandbox."""
        self._called("sandbox")
        pod = self._of_sandbox(sandbox)
        if pod is None:
            raise refused("SANDBOX_NOT_FOUND", "no such sandbox", Code.NOT_FOUND)
        return next(box for box in pod.sandboxes if box.id == sandbox)

    async def container(self, container: ContainerId) -> ObservedContainer:
        """Return one container."""
        self._called("container")
        pod = self._of_container(container)
        if pod is None:
            raise refused("CONTAINER_NOT_FOUND", "no such container", Code.NOT_FOUND)
        return next(c for c in pod.containers if c.id == container)

    async def list_pods(self) -> Mapping[PodUid, ObservedPod]:
        """Return every pod that has anything."""
        self._called("list_pods")
        return {uid: pod for uid, pod in self._pods.items() if pod.sandboxes or pod.containers}

    async def manifests(self) -> Mapping[PodUid, str]:
        """Return the manifests of pods that have a sandbox."""
        self._called("manifests")
        return {uid: self._manifests.get(uid, "") for uid, pod in self._pods.items() if pod.sandboxes}

    async def ledger(self) -> Holdings | None:
        """Tell nothing: values hold nothing on a host."""
        return None

    async def create_sandbox(self, config: SandboxConfig) -> SandboxId:
        """Make a sandbox; refuse a second of the same attempt."""
        self._called("create_sandbox")
        pod = self._pods.get(config.pod.uid) or ObservedPod(
            config.pod.uid, config.pod.namespace, config.pod.name
        )
        for box in pod.sandboxes:
            if box.attempt == config.attempt and box.ready and self._configs.get(box.id) == config:
                return box.id
        if any(box.attempt == config.attempt for box in pod.sandboxes):
            raise refused("SANDBOX_EXISTS", "a sandbox of that attempt exists", Code.ALREADY_EXISTS)
        self._manifests[config.pod.uid] = config.manifest
        number = self._next()
        box = ObservedSandbox(
            SandboxId(f"box{number}"), config.attempt, True, (f"10.9.0.{number % 250 + 1}",)
        )
        self._configs[box.id] = config
        self._keep(replace(pod, sandboxes=(*pod.sandboxes, box)))
        return box.id

    async def stop_sandbox(self, sandbox: SandboxId) -> None:
        """End a sandbox and what runs in it."""
        self._called("stop_sandbox")
        pod = self._of_sandbox(sandbox)
        if pod is None:
            return
        boxes = [replace(b, ready=False, addresses=()) if b.id == sandbox else b for b in pod.sandboxes]
        containers = [
            self._ended(c, 137) if c.sandbox_id == sandbox and c.state is RuntimeState.RUNNING else c
            for c in pod.containers
        ]
        self._keep(replace(pod, sandboxes=tuple(boxes), containers=tuple(containers)))

    async def remove_sandbox(self, sandbox: SandboxId) -> None:
        """Remove a sandbox and its containers."""
        self._called("remove_sandbox")
        pod = self._of_sandbox(sandbox)
        if pod is not None:
            boxes = tuple(b for b in pod.sandboxes if b.id != sandbox)
            containers = tuple(c for c in pod.containers if c.sandbox_id != sandbox)
            self._keep(replace(pod, sandboxes=boxes, containers=containers))

    async def image_present(self, image: str) -> bool:
        """Tell whether an image is here."""
        self._called("image_present")
        return image in self.present

    async def images(self) -> Sequence[Image]:
        """Return what is here, each of a thousand bytes."""
        self._called("images")
        return [Image(name, 1000, tags=(name,)) for name in sorted(self.present)]

    async def image_user(self, image: str) -> str:
        """Return an image's user, as `users` has it."""
        self._called("image_user")
        return self.users.get(image, "")

    async def recursive_read_only(self) -> bool:
        """Tell that nothing of the kind is there."""
        return False

    async def pull_image(self, image: str, credential: Credential | None = None) -> None:
        """Pull an image that can be pulled; one in `private` by whoever it says."""
        self._called("pull_image")
        self.asked_as.append(credential)
        if image in self.private and credential != self.private[image]:
            raise refused("IMAGE_PULL_FAILED", f"Failed to pull image {image!r}: denied", Code.UNKNOWN)
        if image not in self.pullable:
            raise refused("IMAGE_PULL_FAILED", f"Failed to pull image {image!r}: no such host", Code.UNKNOWN)
        self.present.add(image)

    async def create_container(self, sandbox: SandboxId, config: ContainerConfig) -> ContainerId:
        """Create a container in a ready sandbox."""
        self._called("create_container")
        pod = self._of_sandbox(sandbox)
        if pod is None:
            raise refused("SANDBOX_NOT_FOUND", "no such sandbox", Code.NOT_FOUND)
        if not any(b.id == sandbox and b.ready for b in pod.sandboxes):
            raise refused("SANDBOX_NOT_READY", "the sandbox is not ready")
        for found in pod.containers:
            if found.sandbox_id == sandbox and self._configs.get(found.id) == config:
                return found.id
        made = ObservedContainer(
            id=ContainerId(f"c{self._next()}"),
            name=config.container.name,
            attempt=config.attempt,
            state=RuntimeState.CREATED,
            sandbox_id=sandbox,
            image=config.container.image,
            log_path=config.log_path,
            spec_hash=spec_hash(config.container),
        )
        self._configs[made.id] = config
        self.made.append(config)
        self._keep(replace(pod, containers=(*pod.containers, made)))
        return made.id

    async def start_container(self, container: ContainerId) -> None:
        """Start a created container."""
        self._called("start_container")
        pod = self._of_container(container)
        if pod is None:
            raise refused("CONTAINER_NOT_FOUND", "no such container", Code.NOT_FOUND)
        self._next()
        changed = [
            replace(c, state=RuntimeState.RUNNING, started_at=self._now()) if c.id == container else c
            for c in pod.containers
        ]
        self._keep(replace(pod, containers=tuple(changed)))

    async def stop_container(self, container: ContainerId, grace_seconds: int) -> None:
        """Stop a container."""
        self._called("stop_container")
        pod = self._of_container(container)
        if pod is not None:
            self.stops += [(c.name, grace_seconds) for c in pod.containers if c.id == container]
            changed = [
                self._ended(c, 143) if c.id == container and c.state is RuntimeState.RUNNING else c
                for c in pod.containers
            ]
            self._keep(replace(pod, containers=tuple(changed)))

    async def remove_container(self, container: ContainerId) -> None:
        """Remove a container."""
        self._called("remove_container")
        pod = self._of_container(container)
        if pod is not None:
            self._keep(replace(pod, containers=tuple(c for c in pod.containers if c.id != container)))

    async def writable_layers(self) -> Mapping[ContainerId, int]:
        """Return the sizes of layers, as `layers` has them."""
        self._called("writable_layers")
        return dict(self.layers)

    async def reopen_log(self, container: ContainerId) -> None:
        """Nothing is written here."""

    async def exec_sync(
        self, container: ContainerId, command: Sequence[str], timeout_seconds: int
    ) -> tuple[int, bytes]:
        """Succeed for the command `true`, fail for any other."""
        self._called("exec_sync")
        self.commands.append(tuple(command))
        pod = self._of_container(container)
        running = pod and any(c.id == container and c.state is RuntimeState.RUNNING for c in pod.containers)
        if not running:
            raise refused("CONTAINER_NOT_RUNNING", "the container does not run")
        return (0, b"") if list(command) == ["true"] else (1, b"no")

    async def exec_url(self, container: ContainerId, command: Sequence[str], streams: Streams) -> str:
        """Refuse: nothing streams here."""
        raise refused("STREAMING_NOT_SERVED", "nothing streams here", Code.UNIMPLEMENTED)

    async def attach_url(self, container: ContainerId, streams: Streams) -> str:
        """Refuse: nothing streams here."""
        raise refused("STREAMING_NOT_SERVED", "nothing streams here", Code.UNIMPLEMENTED)

    async def port_forward_url(self, sandbox: SandboxId, ports: Sequence[int]) -> str:
        """Refuse: nothing streams here."""
        raise refused("STREAMING_NOT_SERVED", "nothing streams here", Code.UNIMPLEMENTED)

    async def checkpoint(self, container: ContainerId, path: Path, timeout_seconds: int) -> None:
        """Refuse: values have no state to keep."""
        raise refused("CHECKPOINT_NOT_SERVED", "nothing is kept here", Code.UNIMPLEMENTED)

    async def changes(self) -> AsyncIterator[PodUid]:
        """Yield each pod that changed."""
        queue: asyncio.Queue[PodUid] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def version(self) -> str:
        """Return a name."""
        return "fake://1"

    async def image_directory(self) -> str:
        """Tell of none."""
        return ""

    async def status(self) -> RuntimeStatus:
        """Return that all is well."""
        self._called("status")
        return RuntimeStatus([RuntimeCondition("RuntimeReady", True), RuntimeCondition("NetworkReady", True)])
