"""CRI messages to engine configurations, and what the engine says to CRI messages. Pure.

Source: the CRI's comments on each field, and the Docker Engine API 1.41.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.errors import invalid
from services.kubelet.cri.naming import CONTAINER, SANDBOX, Record
from services.kubelet.cri.network.details import HostPort, PodDetails

Json = Mapping[str, Any]
_PROPAGATION = {0: "rprivate", 1: "rslave", 2: "rshared"}
_RUNNING = {"running", "restarting"}
_HOLDING = {*_RUNNING, "paused"}
# Containers log through the engine's `local` driver: it keeps every byte as it was written.
LOG_CONFIG = {"Type": "local", "Config": {"max-size": "64m", "max-file": "3", "compress": "false"}}
# Probes are the pod's own; an image's check would run in the container, unasked and unlimited.
NO_HEALTHCHECK = {"Test": ["NONE"]}
_UID_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Host:
    """What the host allows. `negative_oom_scores` needs CAP_SYS_RESOURCE."""

    owner: str
    pause_image: str
    negative_oom_scores: bool = False


def sandbox_record(config: pb.PodSandboxConfig) -> Record:
    """Take what must be remembered of a sandbox. Raises for missing metadata."""
    meta = config.metadata
    for name in ("name", "namespace", "uid"):
        if not getattr(meta, name):
            raise invalid(f"config.metadata.{name}", "must not be empty")
    options = config.linux.security_context.namespace_options
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


def sandbox_config(config: pb.PodSandboxConfig, record: Record, host: Host) -> dict[str, Any]:
    """Build the engine's configuration of a pause container; its labels are the register's part."""
    options = config.linux.security_context.namespace_options
    host_config: dict[str, Any] = {
        "NetworkMode": "host" if record.host_network else "none",
        "IpcMode": "host" if options.ipc == pb.NODE else "shareable",
        "PidMode": "host" if options.pid == pb.NODE else "",
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "OomScoreAdj": oom_score(-998, host),
        "LogConfig": {"Type": "none", "Config": {}},
        "ReadonlyRootfs": True,
        "RestartPolicy": {"Name": "no"},
        "Sysctls": dict(config.linux.sysctls),
    }
    if config.linux.cgroup_parent:
        host_config["CgroupParent"] = config.linux.cgroup_parent
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


def container_config(
    config: pb.ContainerConfig, record: Record, sandbox: Record, host: Host, *, resolv_conf: str = ""
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
        "HostConfig": _container_host(config, record, sandbox, host, resolv_conf),
    }
    if config.command:
        made["Entrypoint"] = list(config.command)
    if config.args:
        made["Cmd"] = list(config.args)
    user = _user(config.linux.security_context)
    if user:
        made["User"] = user
    return made


def _env(item: pb.KeyValue) -> str:
    try:
        return f"{item.key}={item.value.decode()}"
    except UnicodeDecodeError as error:
        raise invalid(f"config.envs[{item.key}]", "is not UTF-8, which the engine needs") from error


def _container_host(
    config: pb.ContainerConfig, record: Record, sandbox: Record, host: Host, resolv_conf: str
) -> dict[str, Any]:
    context = config.linux.security_context
    joined = f"container:{record.sandbox_id}"
    pid = context.namespace_options.pid
    mounts = [_mount(mount) for mount in config.mounts]
    if resolv_conf and all(mount["Target"] != "/etc/resolv.conf" for mount in mounts):
        mounts.append({"Type": "bind", "Source": resolv_conf, "Target": "/etc/resolv.conf"})
    made: dict[str, Any] = {
        "NetworkMode": joined,
        "IpcMode": "host" if context.namespace_options.ipc == pb.NODE else joined,
        "PidMode": "host" if pid == pb.NODE else joined if pid == pb.POD else "",
        "Mounts": mounts,
        "LogConfig": LOG_CONFIG,
        "RestartPolicy": {"Name": "no"},
        "Privileged": context.privileged,
        "ReadonlyRootfs": context.readonly_rootfs,
        "CapAdd": list(context.capabilities.add_capabilities),
        "CapDrop": list(context.capabilities.drop_capabilities),
        "GroupAdd": [str(group) for group in context.supplemental_groups],
        "SecurityOpt": ["no-new-privileges"] if context.no_new_privs else [],
        "Devices": [
            {
                "PathOnHost": d.host_path,
                "PathInContainer": d.container_path,
                "CgroupPermissions": d.permissions,
            }
            for d in config.devices
        ],
        **resources(config.linux.resources, host),
    }
    return made


def _mount(mount: pb.Mount) -> dict[str, Any]:
    options: dict[str, Any] = {"Propagation": _PROPAGATION.get(mount.propagation, "rprivate")}
    return {
        "Type": "bind",
        "Source": mount.host_path,
        "Target": mount.container_path,
        "ReadOnly": mount.readonly,
        "BindOptions": options,
    }


def _user(context: pb.LinuxContainerSecurityContext) -> str:
    user = str(context.run_as_user.value) if context.HasField("run_as_user") else context.run_as_username
    group = f":{context.run_as_group.value}" if context.HasField("run_as_group") else ""
    if group and not user:
        raise invalid("config.linux.security_context.run_as_group", "needs run_as_user or run_as_username")
    return user + group


def resources(values: pb.LinuxContainerResources, host: Host) -> dict[str, Any]:
    """Build the engine's resources; zero means unset, as in the CRI."""
    made: dict[str, Any] = {"OomScoreAdj": oom_score(values.oom_score_adj, host)}
    pairs = {
        "CpuShares": values.cpu_shares,
        "CpuQuota": values.cpu_quota,
        "CpuPeriod": values.cpu_period,
        "Memory": values.memory_limit_in_bytes,
        "MemorySwap": values.memory_swap_limit_in_bytes or values.memory_limit_in_bytes,
        "CpusetCpus": values.cpuset_cpus,
        "CpusetMems": values.cpuset_mems,
    }
    made.update({name: value for name, value in pairs.items() if value})
    return made


def oom_score(wanted: int, host: Host) -> int:
    """Clamp a score to what the host allows: a negative one needs CAP_SYS_RESOURCE."""
    return wanted if host.negative_oom_scores else max(0, wanted)


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
    options = status.linux.namespaces.options
    options.network = pb.NODE if record.host_network else pb.POD
    options.pid = pb.CONTAINER
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
    return pb.ContainerStatus(
        id=inspected["Id"],
        metadata=pb.ContainerMetadata(name=record.name, attempt=record.attempt),
        state=container_state(state["Status"]),
        created_at=nanoseconds(inspected["Created"]),
        started_at=nanoseconds(state["StartedAt"]),
        finished_at=nanoseconds(state["FinishedAt"]),
        exit_code=int(state["ExitCode"]),
        image=pb.ImageSpec(image=record.image),
        image_ref=inspected["Image"],
        image_id=inspected["Image"],
        reason=reason,
        message=message,
        labels=record.labels,
        annotations=record.annotations,
        mounts=[
            pb.Mount(
                container_path=m["Destination"], host_path=m.get("Source", ""), readonly=not m.get("RW", True)
            )
            for m in inspected.get("Mounts", [])
        ],
        log_path=record.log_path,
    )


def _end(state: Json) -> tuple[str, str]:
    if state["Status"] == "paused":
        return "Paused", "Somebody paused the container at the engine; `docker unpause` lets it go on"
    if container_state(state["Status"]) != pb.CONTAINER_EXITED:
        return "", state.get("Error", "")
    if state.get("OOMKilled"):
        return "OOMKilled", state.get("Error", "")
    return ("Completed" if state["ExitCode"] == 0 else "Error"), state.get("Error", "")


def image(listed: Json) -> pb.Image:
    """Build an image from an entry of the engine's list."""
    digests = [d for d in listed.get("RepoDigests") or () if not d.startswith("<none>")]
    tags = [t for t in listed.get("RepoTags") or () if t != "<none>:<none>"]
    return pb.Image(id=listed["Id"], repo_tags=tags, repo_digests=digests, size=int(listed.get("Size", 0)))


def image_from_inspect(inspected: Json) -> pb.Image:
    """Build an image from all that the engine knows of it."""
    made = image(inspected)
    user = str((inspected.get("Config") or {}).get("User") or "").partition(":")[0]
    if user.isascii() and user.isdigit() and len(user) <= _UID_DIGITS:
        made.uid.value = int(user)
    elif user:
        made.username = user
    return made


def with_tag(name: str) -> str:
    """Add `:latest` to a name without tag or digest, as the engine would."""
    last = name.rsplit("/", 1)[-1]
    return name if ":" in last or "@" in name or name.startswith("sha256:") else f"{name}:latest"
