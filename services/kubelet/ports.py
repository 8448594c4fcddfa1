"""What the kubelet's inside needs from the outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from services.common.kuberequest import Json
from services.kubelet.core.access import Access, User
from services.kubelet.core.audit import Holdings
from services.kubelet.core.dns import PodDns
from services.kubelet.core.model import (
    ConfigMap,
    Container,
    ContainerId,
    HookAction,
    ObjectKey,
    Pod,
    PodUid,
    Probe,
    SandboxId,
    Secret,
    Service,
    Volume,
)
from services.kubelet.core.node import RuntimeFeatures
from services.kubelet.core.node_images import Image
from services.kubelet.core.observed import ObservedContainer, ObservedPod, ObservedSandbox
from services.kubelet.core.payload import Payload
from services.kubelet.core.pull_secrets import Credential
from services.kubelet.core.resources import KernelResources
from services.kubelet.core.security import Rights
from services.kubelet.core.stream_options import Streams
from services.kubelet.core.volumes import Mount


class PodSource(Protocol):
    """Where desired pods come from: the store of a standalone node, or a kube-apiserver."""

    def pods(self) -> Sequence[Pod]:
        """Return every pod bound to this node, those being deleted too."""
        ...

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one pod; None when it is gone from the source."""
        ...

    def take_new(self, uid: PodUid) -> bool:
        """Tell, once, that a pod was made just now and by us: no runtime can have anything of its UID."""
        ...

    def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield each pod that changed, with the `traceparent` of the cause; the present ones first."""
        ...

    async def finalize(self, uid: PodUid) -> None:
        """Forget a pod whose deletion time is set and of which nothing is left. May be repeated."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Which token of a service account is wanted, bound to a pod."""

    pod: Pod
    service_account: str
    audience: str = ""
    expiration_seconds: int = 3600


@dataclass(frozen=True, slots=True)
class Token:
    """A signed token and until when it is good."""

    text: str = field(repr=False)
    expires: datetime


class PodObjects(Protocol):
    """What pods name and bring in: the store of a standalone node, or a kube-apiserver.

    All raise `TripodError` when it cannot be told now; None means that there is none.
    """

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """Return a ConfigMap."""
        ...

    async def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret."""
        ...

    async def services(self, namespace: str) -> Sequence[Service]:
        """Return the services of a namespace, for the variables that name them."""
        ...

    async def token(self, request: TokenRequest) -> Token:
        """Return a fresh token of a service account."""
        ...

    async def kept_token(self, request: TokenRequest) -> str:
        """Return the token that was given last, while no fresh one is to be had; "" where there is none."""
        ...

    async def root_certificates(self) -> str:
        """Return the PEM text of the authorities that pods trust for the API; empty where there is none."""
        ...

    def object_changes(self) -> AsyncIterator[ObjectKey]:
        """Yield each ConfigMap or Secret that changed since the call."""
        ...


class ClusterMemory(Protocol):
    """Keeps what a cluster sent, for times without its API server. Raises nothing."""

    async def keep_pods(self, bodies: Mapping[PodUid, Json], gone: Collection[PodUid] = ()) -> None:
        """Keep pods, and forget some."""
        ...

    async def keep_objects(self, bodies: Mapping[ObjectKey, Json | None]) -> None:
        """Keep ConfigMaps, Secrets and services, and forget those of which there is none."""
        ...

    async def keep_fact(self, name: str, value: str) -> None:
        """Keep something that the cluster said."""
        ...


class Reviewer(Protocol):
    """Who knows users and what they may: a kube-apiserver. Both raise `TripodError` when it cannot tell."""

    async def review_token(self, token: str) -> User | None:
        """Return whose token this is; None when it is nobody's."""
        ...

    async def review_access(self, user: User, access: Access) -> bool:
        """Tell whether a user may."""
        ...


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What a sandbox is made from."""

    pod: Pod
    attempt: int
    hostname: str
    log_directory: str
    manifest: str = ""
    dns: PodDns = field(default=PodDns())
    runtime_handler: str = ""


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """What a container is made from; `command` and `args` have their references replaced.

    `sandbox` is what its sandbox was made from, which some runtimes want again; it may lack the manifest.
    `target` is the container whose processes it sees, for one that is to look at them.
    """

    pod: Pod
    sandbox: SandboxConfig
    container: Container
    attempt: int
    command: tuple[str, ...]
    args: tuple[str, ...]
    environment: Mapping[str, str]
    mounts: Sequence[Mount]
    resources: KernelResources
    log_path: str
    rights: Rights = field(default=Rights())
    target: ContainerId | None = None


@dataclass(frozen=True, slots=True)
class RuntimeCondition:
    """One condition of the runtime."""

    type: str
    holds: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """What the runtime says of itself."""

    conditions: Sequence[RuntimeCondition]
    features: RuntimeFeatures = field(default=RuntimeFeatures())


class Runtime(Protocol):
    """A container runtime. Every call may be repeated; all raise `TripodError`."""

    async def observe(self, uid: PodUid) -> ObservedPod:
        """Return all of a pod that is there, completely."""
        ...

    async def sandbox(self, sandbox: SandboxId) -> ObservedSandbox:
        """Return one sandbox. Raises for one that does not exist."""
        ...

    async def container(self, container: ContainerId) -> ObservedContainer:
        """Return one container. Raises for one that does not exist."""
        ...

    async def list_pods(self) -> Mapping[PodUid, ObservedPod]:
        """Return every pod that is there, without addresses and times."""
        ...

    async def manifests(self) -> Mapping[PodUid, str]:
        """Return what `SandboxConfig.manifest` said of each pod that is there; "" where nothing is known."""
        ...

    async def ledger(self) -> Holdings | None:
        """Return what the runtime holds of ours on this host; None from one that does not tell."""
        ...

    async def create_sandbox(self, config: SandboxConfig) -> SandboxId:
        """Make a ready sandbox."""
        ...

    async def stop_sandbox(self, sandbox: SandboxId) -> None:
        """End a sandbox."""
        ...

    async def remove_sandbox(self, sandbox: SandboxId) -> None:
        """Remove a sandbox and its containers."""
        ...

    async def image_present(self, image: str) -> bool:
        """Tell whether an image is there."""
        ...

    async def images(self) -> Sequence[Image]:
        """Return every image that is there."""
        ...

    async def image_user(self, image: str) -> str:
        """Return as whom an image runs: a number, or else a name; "" for what is not said or not there."""
        ...

    async def pull_image(self, image: str, credential: Credential | None = None) -> None:
        """Pull an image, as somebody whom its registry knows."""
        ...

    async def recursive_read_only(self) -> bool:
        """Tell whether mounts can be read-only with all that is mounted below them."""
        ...

    async def create_container(self, sandbox: SandboxId, config: ContainerConfig) -> ContainerId:
        """Create a container."""
        ...

    async def start_container(self, container: ContainerId) -> None:
        """Start a created container."""
        ...

    async def stop_container(self, container: ContainerId, grace_seconds: int) -> None:
        """Stop a container."""
        ...

    async def remove_container(self, container: ContainerId) -> None:
        """Remove a container."""
        ...

    async def writable_layers(self) -> Mapping[ContainerId, int]:
        """Return how many bytes the writable layer of each running container has, as far as is known."""
        ...

    async def reopen_log(self, container: ContainerId) -> None:
        """Have a running container's log written to its path anew, after the file was moved away."""
        ...

    async def exec_sync(
        self, container: ContainerId, command: Sequence[str], timeout_seconds: int
    ) -> tuple[int, bytes]:
        """Run a command to its end; returns its exit code and output. Raises `EXEC_TIMEOUT`."""
        ...

    async def exec_url(self, container: ContainerId, command: Sequence[str], streams: Streams) -> str:
        """Return a URL at which a command can be run with streams, once."""
        ...

    async def attach_url(self, container: ContainerId, streams: Streams) -> str:
        """Return a URL at which a container's own streams can be had, once."""
        ...

    async def port_forward_url(self, sandbox: SandboxId, ports: Sequence[int]) -> str:
        """Return a URL at which ports of a sandbox can be reached, once.

        Only clients of WebSocket channels need `ports` named.
        """
        ...

    async def checkpoint(self, container: ContainerId, path: Path, timeout_seconds: int) -> None:
        """Write a container's state to a file. 0 takes the runtime's own time-out."""
        ...

    def changes(self) -> AsyncIterator[PodUid]:
        """Yield each pod of which a container or sandbox changed, until the stream breaks."""
        ...

    async def version(self) -> str:
        """Return name and version, such as `docker://20.10.24`."""
        ...

    async def image_directory(self) -> str:
        """Return where images and containers lie on the node; "" from a runtime that does not tell."""
        ...

    async def status(self) -> RuntimeStatus:
        """Return how the runtime fares, and what it can."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """What a probe is sent to."""

    pod: Pod
    container: Container
    container_id: ContainerId
    address: str


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """How one probe went; `message` says why it failed."""

    success: bool
    message: str = ""


class ProbeRunner(Protocol):
    """Runs one probe."""

    async def run(self, probe: Probe, target: ProbeTarget) -> ProbeOutcome | None:
        """Run within the probe's time-out; None when the runtime could not run it, which says nothing.

        Raises nothing but cancellation.
        """
        ...


class HookRunner(Protocol):
    """Runs one lifecycle hook."""

    async def run(self, action: HookAction, target: ProbeTarget, seconds: int) -> str | None:
        """Run a hook within `seconds`; returns what went wrong, or an empty text.

        None when the runtime could not run it, which says nothing. Raises nothing but cancellation.
        """
        ...


class LastWords(Protocol):
    """What containers said at their end."""

    async def prepare(self, pod: Pod, container: Container, attempt: int) -> None:
        """Make the file that an attempt may write to. May be repeated. Raises `KubeletError`."""
        ...

    async def read(self, pod: Pod, container: Container, ended: ObservedContainer) -> str:
        """Return what an ended container said; empty where it said nothing, or it cannot be read."""
        ...


class EventSink(Protocol):
    """Takes what happens to pods."""

    def emit(
        self, pod: Pod, reason: str, message: str, *, container: str = "", warning: bool = False
    ) -> None:
        """Note an event."""
        ...


class LogFiles(Protocol):
    """Looks at and moves the log files of one container's folder."""

    async def sizes(self, folder: Path) -> Mapping[str, int]:
        """Return the files in a folder with their sizes; nothing for a folder that is not there."""
        ...

    async def oversized(self, paths: Sequence[Path], limit_bytes: int) -> Collection[Path]:
        """Return the files that have as many bytes or more."""
        ...

    async def move(self, source: Path, target: Path) -> None:
        """Give a file another name, which must be free. Raises `KubeletError`."""
        ...

    async def remove(self, path: Path) -> None:
        """Remove a file. An absent one is no error."""
        ...


class VolumeFiles(Protocol):
    """Makes the volumes of pods. All raise `TripodError`; every call may be repeated."""

    async def prepare(self, pod: Pod, volume: Volume, node_memory_bytes: int) -> None:
        """Make what a volume needs before anything is in it; see that a host's path is what it must be."""
        ...

    async def write(self, pod: Pod, volume: Volume, payload: Payload, stamp: str) -> bool:
        """Make a volume's files `payload`, all at once; tells whether anything changed."""
        ...

    async def read(self, pod: Pod, volume: Volume, path: str) -> str:
        """Return a file of a volume that was written before; "" where there is none."""
        ...

    async def written(self, pod: Pod, volume: Volume) -> bool:
        """Tell whether a volume has files, of whatever age."""
        ...

    async def sub_path(self, pod: Pod, volume: Volume, path: str, place: tuple[str, int]) -> str:
        """Return what a runtime can mount for a path within a volume; `place` is a container's mount."""
        ...


class PodFiles(Protocol):
    """Makes and removes the folders of pods."""

    async def prepare(self, pod: Pod) -> None:
        """Make the folders of a pod's volumes."""
        ...

    async def write_hosts(self, pod: Pod, text: str) -> None:
        """Write a pod's /etc/hosts, unless it says that already."""
        ...

    async def node_hosts(self) -> str:
        """Return the node's own /etc/hosts; "" when it cannot be read."""
        ...

    async def remove(self, pod: PodUid) -> None:
        """Remove everything of a pod but its logs."""
        ...

    async def remove_logs(self, pod: Pod) -> None:
        """Remove a pod's logs."""
        ...

    async def recall(self, uid: PodUid) -> str:
        """Return what was last remembered of a pod; empty when nothing was, or it cannot be read."""
        ...

    async def remember(self, uid: PodUid, text: str) -> None:
        """Keep a text with a pod that has a folder. Raises `OSError`; the old text stays."""
        ...

    async def remove_orphan(self, uid: PodUid) -> None:
        """Remove everything of a pod that nobody knows any more, its logs too."""
        ...

    async def known(self) -> set[PodUid]:
        """Return the pods that have folders."""
        ...

    async def logged(self) -> set[PodUid]:
        """Return the pods that have folders of logs."""
        ...
