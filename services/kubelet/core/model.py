"""The kubelet's values: what a pod and a service should be, after validation and defaults.

Source: Kubernetes API reference, `Pod` v1 and `Service` v1. A field that is not
here is refused by `manifest` with its path, so nothing a user writes is ignored.
Status lives in `status`; what was seen at the runtime lives in `observed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import NewType

from services.kubelet.core.brought import EnvFrom, EnvSource, ImageSource, Projected
from services.kubelet.core.dns import DnsWish
from services.kubelet.core.hostname import Naming
from services.kubelet.core.scheduling import Scheduling
from services.kubelet.core.security import ContainerSecurity, HostNamespaces, PodSecurity

PodUid = NewType("PodUid", str)
ContainerId = NewType("ContainerId", str)
SandboxId = NewType("SandboxId", str)

EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """Name one object of one kind."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.namespace}/{self.name}"


class RestartPolicy(Enum):
    """Which ended containers start again."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class PullPolicy(Enum):
    """When an image is pulled."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class Protocol(Enum):
    """Transport protocol of a port."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


@dataclass(frozen=True, slots=True)
class EnvVar:
    """One environment variable; `value` has its references `$(NAME)` still in it.

    With a `source` the value comes from there.
    """

    name: str
    value: str = ""
    source: EnvSource | None = None


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a container declares, 1 to 65535, and the node's that leads to it; 0 for none."""

    container_port: int
    name: str = ""
    protocol: Protocol = Protocol.TCP
    host_port: int = 0
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """Where a volume appears in a container.

    `sub_path` is relative; as an expression its references `$(NAME)` are still in it.
    `propagation` and `recursive_read_only` are as Kubernetes writes them.
    """

    name: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""
    sub_path_is_expression: bool = False
    propagation: str = "None"
    recursive_read_only: str = "Disabled"


@dataclass(frozen=True, slots=True)
class HttpGet:
    """Probe by HTTP GET; 200 to 399 is success."""

    port: int | str
    path: str = "/"
    scheme: str = "HTTP"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """Probe by opening a connection."""

    port: int | str
    host: str = ""


@dataclass(frozen=True, slots=True)
class ExecAction:
    """Probe by a command in the container; exit code 0 is success."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GrpcCheck:
    """Ask the gRPC health service of a port; an empty `service` asks for the server as a whole."""

    port: int
    service: str = ""


ProbeAction = HttpGet | TcpSocket | ExecAction | GrpcCheck


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe with its rhythm; a grace of None is the pod's."""

    action: ProbeAction
    initial_delay_seconds: int = 0
    period_seconds: int = 10
    timeout_seconds: int = 1
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class SleepAction:
    """Do nothing for so long; zero is allowed."""

    seconds: int


HookAction = ExecAction | HttpGet | SleepAction


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What runs after a container's start and before its stop, and the signal of its stop.

    `stop_signal` is a name such as SIGUSR1; empty means the image's, else SIGTERM.
    """

    post_start: HookAction | None = None
    pre_stop: HookAction | None = None
    stop_signal: str = ""


class MessagePolicy(Enum):
    """Where a container's termination message comes from."""

    FILE = "File"
    FALLBACK_TO_LOGS_ON_ERROR = "FallbackToLogsOnError"


@dataclass(frozen=True, slots=True)
class RestartRule:
    """Restart a container that ended with one of `exit_codes`, or with `others` by any but them."""

    exit_codes: tuple[int, ...]
    others: bool = False


@dataclass(frozen=True, slots=True)
class Resources:
    """Requests and limits. None means that the manifest says nothing.

    `other_requests` and `other_limits` have disk (`ephemeral-storage`) and huge pages in bytes, and
    extended resources by their count, sorted by name.
    """

    cpu_request_millicores: int | None = None
    cpu_limit_millicores: int | None = None
    memory_request_bytes: int | None = None
    memory_limit_bytes: int | None = None
    other_requests: tuple[tuple[str, int], ...] = ()
    other_limits: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a pod."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: Resources = Resources()
    volume_mounts: tuple[VolumeMount, ...] = ()
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    image_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    tty: bool = False
    stdin: bool = False
    security: ContainerSecurity = field(default=ContainerSecurity())
    # What a resize restarts: resource name and policy.
    resize_policy: tuple[tuple[str, str], ...] = ()
    stdin_once: bool = False
    # None is the pod's. An init container with ALWAYS is a sidecar.
    restart_policy: RestartPolicy | None = None
    restart_rules: tuple[RestartRule, ...] = ()
    lifecycle: Lifecycle = Lifecycle()
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: MessagePolicy = MessagePolicy.FILE
    # The container whose processes an ephemeral one sees.
    target: str = ""


@dataclass(frozen=True, slots=True)
class EmptyDir:
    """A directory that lives as long as the pod: on the node's disk, or with `memory` in a tmpfs.

    `size_limit_bytes` is None where the manifest says nothing.
    """

    memory: bool = False
    size_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class HostPath:
    """A path of the node, which must exist; `type` says what must be there, or what is made."""

    path: str
    type: str = ""


VolumeSource = EmptyDir | HostPath | Projected | ImageSource


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of a pod."""

    name: str
    source: VolumeSource


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What a pod should run."""

    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    ephemeral_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    termination_grace_period_seconds: int = 30
    hostname: str = ""
    enable_service_links: bool = True
    image_pull_secrets: tuple[str, ...] = ()
    service_account_name: str = "default"
    automount_service_account_token: bool | None = None
    security: PodSecurity = field(default=PodSecurity())
    namespaces: HostNamespaces = field(default=HostNamespaces())
    dns: DnsWish = field(default=DnsWish())
    naming: Naming = field(default=Naming())
    scheduling: Scheduling = field(default=Scheduling())
    # Types of conditions that others must set before the pod is ready.
    readiness_gates: tuple[str, ...] = ()
    runtime_class_name: str = ""
    active_deadline_seconds: int | None = None

    @property
    def every(self) -> tuple[Container, ...]:
        """All containers of whatever kind, in the order in which they start."""
        return (*self.init_containers, *self.containers, *self.ephemeral_containers)

    @property
    def sidecars(self) -> tuple[Container, ...]:
        """The init containers that run beside the main ones, in order."""
        return tuple(c for c in self.init_containers if c.restart_policy is RestartPolicy.ALWAYS)

    @property
    def lasting(self) -> tuple[Container, ...]:
        """The containers that are probed and make the pod ready: sidecars and main ones."""
        return (*self.sidecars, *self.containers)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that this node should run, as stored.

    `deletion_time` is set when it was asked to stop; `deletion_grace_seconds` then
    says how long its containers get. `revision` is that of the store.
    """

    uid: PodUid
    namespace: str
    name: str
    spec: PodSpec
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    creation_time: datetime | None = None
    deletion_time: datetime | None = None
    deletion_grace_seconds: int | None = None
    revision: int = 0
    # From a cluster: the generation of the spec, the readiness gates whose conditions hold, reason and
    # message of a pod that the API says has failed, and when this node first told that it had the pod.
    generation: int = 0
    conditions_met: frozenset[str] = frozenset()
    failure: tuple[str, str] | None = None
    start_time: datetime | None = None

    @property
    def key(self) -> ObjectKey:
        """Name it among objects."""
        return ObjectKey("Pod", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class ConfigMap:
    """A ConfigMap as stored: UTF-8 text in `data`, bytes in `binary_data`; no key is in both."""

    uid: str
    namespace: str
    name: str
    data: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    binary_data: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    immutable: bool = False
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    creation_time: datetime | None = None
    revision: int = 0

    @property
    def key(self) -> ObjectKey:
        """Name it among objects."""
        return ObjectKey("ConfigMap", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Secret:
    """A Secret as stored. Its values never reach a log, a span, an event or an error."""

    uid: str
    namespace: str
    name: str
    data: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    type: str = "Opaque"
    immutable: bool = False
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    creation_time: datetime | None = None
    revision: int = 0

    @property
    def key(self) -> ObjectKey:
        """Name it among objects."""
        return ObjectKey("Secret", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A ServiceAccount as stored. Pods that name it use its pull secrets when they have none of their own."""

    uid: str
    namespace: str
    name: str
    image_pull_secrets: tuple[str, ...] = ()
    automount_token: bool | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    creation_time: datetime | None = None
    revision: int = 0

    @property
    def key(self) -> ObjectKey:
        """Name it among objects."""
        return ObjectKey("ServiceAccount", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A Namespace as stored; it lies in none itself."""

    uid: str
    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    creation_time: datetime | None = None
    revision: int = 0

    @property
    def namespace(self) -> str:
        """Return "": a namespace lies in none."""
        return ""

    @property
    def key(self) -> ObjectKey:
        """Name it among objects."""
        return ObjectKey("Namespace", "", self.name)


class ServiceType(Enum):
    """How a service is reached."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service. `target_port` is a number or the name of a container port."""

    port: int
    target_port: int | str
    name: str = ""
    protocol: Protocol = Protocol.TCP
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A service as stored. `cluster_ip` is empty for a headless one."""

    uid: str
    namespace: str
    name: str
    cluster_ip: str
    ports: tuple[ServicePort, ...]
    type: ServiceType = ServiceType.CLUSTER_IP
    selector: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    affinity_timeout_seconds: int = 0
    publish_not_ready_addresses: bool = False
    external_traffic_local: bool = False
    internal_traffic_local: bool = False
    creation_time: datetime | None = None
    revision: int = 0

    @property
    def key(self) -> ObjectKey:
        """Name it among objects."""
        return ObjectKey("Service", self.namespace, self.name)
