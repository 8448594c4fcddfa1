"""CRI messages to engine configurations, and what the engine says to CRI messages. Pure.

Source: the CRI's comments on each field, and the Docker Engine API 1.41.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri import mounts, namespaces, portmap, resources, security
from services.kubelet.cri.errors import invalid
from services.kubelet.cri.naming import CONTAINER, SANDBOX, Record
from services.kubelet.cri.network.details import HostPort, PodDetails
from services.kubelet.cri.security import Confinement

Json = Mapping[str, Any]
_RUNNING = {"running", "restarting"}
_HOLDING = {*_RUNNING, "paused"}
# Containers log through the engine's `local` driver: it keeps every byte as it was written.
LOG_CONFIG = {"Type": "local", "Config": {"max-size": "64m", "max-file": "3", "compress": "false"}}
# Probes are the pod's own; an image's check would run in the container, unasked and unlimited.
NO_HEALTHCHECK = {"Test": ["NONE"]}
_SIGNAL = "SIGNAL_"


@dataclass(frozen=True, slots=True)
class Host:
    """What the host and the engine allow.

    `negative_oom_scores` needs CAP_SYS_RESOURCE, `recursive_read_only` an engine with API 1.44.
    """

    owner: str
    pause_image: str
    negative_oom_scores: bool = False
    recursive_read_only: bool = False
    confinement: Confinement = field(default=Confinement())
    runtimes: tuple[str, ...] = ()
    default_runtime: str = ""


def sandbox_record(config: pb.PodSandboxConfig) -> Record:
    """Take what must be remembered of a sandbox. Raises for missing metadata."""
    meta = config.metadata
    for name in ("name", "namespace", "uid"):
        if not getattr(meta, name):
            raise invalid(f"config.metadata.{name}", "must not be empty")
    options = config.linux.security_context.namespace_options
    namespaces.check_sandbox(options)
    return Record(
        kind=SANDBOX,
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        attempt=meta.attempt,
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        log_directory=config.log_directory,
        host_network=options.network == pb.NODE,
        shared_pid=options.pid == pb.POD,
        ports=portmap.encode(config.port_mappings),
    )


def pod_details(config: pb.PodSandboxConfig) -> PodDetails:
    """Take what the pod network may be told."""
    return PodDetails(
        name=config.metadata.name,
        namespace=config.metadata.namespace,
        uid=config.metadata.uid,
        annotations=dict(config.annotations),
        ports=tuple(
            HostPort(
                port.host_port, port.container_port, pb.Protocol.Name(port.protocol).lower(), port.host_ip
            )
            for port in config.port_mappings
        ),
        dns_servers=tuple(config.dns_config.servers),
        dns_searches=tuple(config.dns_config.searches),
        dns_options=tuple(config.dns_config.options),
    )


def sandbox_config(
    config: pb.PodSandboxConfig, record: Record, host: Host, *, runtime: str = ""
) -> dict[str, Any]:
    """Build the engine's configuration of a pause container; its labels are the register's part.

    `runtime` is one of the engine's own; "" takes its default.
    """
    host_config: dict[str, Any] = {
        **namespaces.sandbox(config.linux.security_context.namespace_options),
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "OomScoreAdj": resources.oom_score(-998, negative=host.negative_oom_scores),
        "LogConfig": {"Type": "none", "Config": {}},
        "ReadonlyRootfs": True,
        "RestartPolicy": {"Name": "no"},
        "Sysctls": dict(config.linux.sysctls),
    }
    if config.linux.cgroup_parent:
        host_config["CgroupParent"] = resources.cgroup_parent(config.linux.cgroup_parent)
    if runtime:
        host_config["Runtime"] = runtime
    made: dict[str, Any] = {
        "Image": host.pause_image,
        "Healthcheck": NO_HEALTHCHECK,
        "HostConfig": host_config,
    }
    if config.hostname and not record.host_network:
        made["Hostname"] = config.hostname
    return made


def container_record(config: pb.ContainerConfig, sandbox_id: str, sandbox: Record) -> Record:
    """Take what must be remembered of a container. Raises for missing metadata."""
    if not config.metadata.name:
        raise invalid("config.metadata.name", "must not be empty")
    if not config.image.image:
        raise invalid("config.image.image", "must not be empty")
    directory = sandbox.log_directory.rstrip("/")
    log_path = f"{directory}/{config.log_path}" if directory and config.log_path else ""
    return Record(
        kind=CONTAINER,
        name=config.metadata.name,
        attempt=config.metadata.attempt,
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        sandbox_id=sandbox_id,
        image=config.image.user_specified_image or config.image.image,
        log_path=log_path,
    )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container finds: its sandbox's cgroup, runtime and resolv.conf, and the profile it names.

    `image_mounts` are the engine's mounts of images, by their path in the container.
    """

    cgroup_parent: str = ""
    runtime: str = ""
    resolv_conf: str = ""
    seccomp_profile: str = ""
    image_mounts: Mapping[str, Json] = field(default_factory=dict)


def container_config(
    config: pb.ContainerConfig,
    record: Record,
    sandbox: Record,
    host: Host,
    around: Surroundings | None = None,
) -> dict[str, Any]:
    """Build the engine's configuration of a container in its sandbox; its labels are the register's part."""
    made: dict[str, Any] = {
        "Image": config.image.image,
        "Env": [_env(item) for item in config.envs],
        "WorkingDir": config.working_dir,
        "Tty": config.tty,
        "OpenStdin": config.stdin,
        "StdinOnce": config.stdin_once,
        "Healthcheck": NO_HEALTHCHECK,
        "HostConfig": _container_host(config, record, sandbox, host, around or Surroundings()),
    }
    if config.command:
        made["Entrypoint"] = list(config.command)
    if config.args:
        made["Cmd"] = list(config.args)
    user = security.user(config.linux.security_context)
    if user:
        made["User"] = user
    if config.stop_signal != pb.SIGNAL_RUNTIME_DEFAULT:
        made["StopSignal"] = pb.Signal.Name(config.stop_signal).removeprefix(_SIGNAL)
    return made


def _env(item: pb.KeyValue) -> str:
    try:
        return f"{item.key}={item.value.decode()}"
    except UnicodeDecodeError as error:
        raise invalid(f"config.envs[{item.key}]", "is not UTF-8, which the engine needs") from error


def _container_host(
    config: pb.ContainerConfig, record: Record, sandbox: Record, host: Host, around: Surroundings
) -> dict[str, Any]:
    context = config.linux.security_context
    rights = security.container(context, host.confinement, seccomp_profile=around.seccomp_profile)
    asked = [security.device(d.host_path, d.container_path, d.permissions) for d in config.devices]
    made: dict[str, Any] = {
        **namespaces.container(
            context.namespace_options, record.sandbox_id, host_network=sandbox.host_network
        ),
        **rights,
        "Mounts": mounts.container(
            config.mounts,
            resolv_conf=around.resolv_conf,
            recursive=host.recursive_read_only,
            images=around.image_mounts,
        ),
        "LogConfig": LOG_CONFIG,
        "RestartPolicy": {"Name": "no"},
        "ReadonlyRootfs": context.readonly_rootfs,
        "GroupAdd": [str(group) for group in context.supplemental_groups],
        "Devices": [*rights.get("Devices", []), *asked],
        **resources.engine(config.linux.resources, negative_oom_scores=host.negative_oom_scores),
    }
    if around.cgroup_parent:
        made["CgroupParent"] = around.cgroup_parent
    if around.runtime:
        made["Runtime"] = around.runtime
    return made


def nanoseconds(stamp: str) -> int:
    """Convert the engine's time to nanoseconds since the epoch; its zero time (year 1) gives 0."""
    if not stamp or stamp.startswith("0001"):
        return 0
    whole, _, rest = stamp.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(rest[:9].ljust(9, "0") or 0)


def sandbox_state(engine_state: str, *, wired: bool) -> pb.PodSandboxState.ValueType:
    """Map the engine's state of a pause container.

    One that runs without its network was left by a start cut short: it is not ready.
    """
    return pb.SANDBOX_READY if engine_state in _HOLDING and wired else pb.SANDBOX_NOTREADY


def container_state(engine_state: str) -> pb.ContainerState.ValueType:
    """Map the engine's state of a container."""
    if engine_state in _RUNNING:
        return pb.CONTAINER_RUNNING
    if engine_state == "paused":
        return pb.CONTAINER_UNKNOWN
    return pb.CONTAINER_CREATED if engine_state == "created" else pb.CONTAINER_EXITED


def sandbox_metadata(record: Record) -> pb.PodSandboxMetadata:
    """Give a sandbox its name back."""
    return pb.PodSandboxMetadata(
        name=record.name, uid=record.uid, namespace=record.namespace, attempt=record.attempt
    )


def sandbox_item(listed: Json, record: Record, *, wired: bool) -> pb.PodSandbox:
    """Build one entry of a list of sandboxes."""
    return pb.PodSandbox(
        id=listed["Id"],
        metadata=sandbox_metadata(record),
        state=sandbox_state(listed["State"], wired=wired),
        created_at=int(listed["Created"]) * 1_000_000_000,
        labels=record.labels,
        annotations=record.annotations,
    )


def sandbox_status(inspected: Json, record: Record, addresses: Sequence[str]) -> pb.PodSandboxStatus:
    """Build the status of a sandbox."""
    status = pb.PodSandboxStatus(
        id=inspected["Id"],
        metadata=sandbox_metadata(record),
        state=sandbox_state(inspected["State"]["Status"], wired=record.host_network or bool(addresses)),
        created_at=nanoseconds(inspected["Created"]),
        labels=record.labels,
        annotations=record.annotations,
    )
    if addresses:
        status.network.ip = addresses[0]
        status.network.additional_ips.extend(pb.PodIP(ip=address) for address in addresses[1:])
    status.linux.namespaces.options.CopyFrom(
        namespaces.status(
            inspected.get("HostConfig") or {}, host_network=record.host_network, shared_pid=record.shared_pid
        )
    )
    return status


def container_item(listed: Json, record: Record) -> pb.Container:
    """Build one entry of a list of containers."""
    return pb.Container(
        id=listed["Id"],
        pod_sandbox_id=record.sandbox_id,
        metadata=pb.ContainerMetadata(name=record.name, attempt=record.attempt),
        image=pb.ImageSpec(image=record.image),
        image_ref=listed["ImageID"],
        image_id=listed["ImageID"],
        state=container_state(listed["State"]),
        created_at=int(listed["Created"]) * 1_000_000_000,
        labels=record.labels,
        annotations=record.annotations,
    )


def container_status(inspected: Json, record: Record) -> pb.ContainerStatus:
    """Build the status of a container."""
    state = inspected["State"]
    reason, message = _end(state)
    started, finished = nanoseconds(state["StartedAt"]), nanoseconds(state["FinishedAt"])
    return pb.ContainerStatus(
        id=inspected["Id"],
        metadata=pb.ContainerMetadata(name=record.name, attempt=record.attempt),
        state=container_state(state["Status"]),
        created_at=nanoseconds(inspected["Created"]),
        started_at=started,
        # The engine may note the end of a process that ends at once before its start.
        finished_at=max(started, finished) if finished else finished,
        exit_code=int(state["ExitCode"]),
        image=pb.ImageSpec(image=record.image),
        image_ref=inspected["Image"],
        image_id=inspected["Image"],
        reason=reason,
        message=message,
        labels=record.labels,
        annotations=record.annotations,
        mounts=mounts.status(inspected, record),
        resources=resources.status(inspected.get("HostConfig") or {}),
        stop_signal=_stop_signal(inspected["Config"].get("StopSignal") or ""),
        log_path=record.log_path,
    )


def _stop_signal(name: str) -> pb.Signal.ValueType:
    """Return a signal by the engine's name; without one the engine sends TERM."""
    try:
        return pb.Signal.Value(f"{_SIGNAL}SIG{name.removeprefix('SIG') or 'TERM'}")
    except ValueError:
        return pb.SIGNAL_RUNTIME_DEFAULT


def _end(state: Json) -> tuple[str, str]:
    if state["Status"] == "paused":
        return "Paused", "Somebody paused the container at the engine; `docker unpause` lets it go on"
    if container_state(state["Status"]) != pb.CONTAINER_EXITED:
        return "", state.get("Error", "")
    if state.get("OOMKilled"):
        return "OOMKilled", state.get("Error", "")
    return ("Completed" if state["ExitCode"] == 0 else "Error"), state.get("Error", "")
