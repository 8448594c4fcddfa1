"""Which namespaces a sandbox and its containers have, in the engine's words. Pure.

Source: the CRI's `NamespaceOption`. Network and IPC belong to the sandbox; processes are the pod's, the
container's own, the host's, or those of a container that is looked into.
"""

from __future__ import annotations

from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.errors import invalid, unsupported

_SHARED = (pb.POD, pb.NODE)


def check_sandbox(options: pb.NamespaceOption) -> None:
    """See that a sandbox can have these namespaces. Raises REQUEST_INVALID, UNSUPPORTED."""
    field = "config.linux.security_context.namespace_options"
    for name in ("network", "ipc"):
        if getattr(options, name) not in _SHARED:
            raise invalid(f"{field}.{name}", "must be POD or NODE")
    if options.pid == pb.TARGET:
        raise invalid(f"{field}.pid", "TARGET is for containers")
    _check_users(options, field)


def sandbox(options: pb.NamespaceOption) -> dict[str, Any]:
    """Return the part of a pause container's host configuration."""
    made: dict[str, Any] = {
        "NetworkMode": "host" if options.network == pb.NODE else "none",
        "IpcMode": "host" if options.ipc == pb.NODE else "shareable",
        "PidMode": "host" if options.pid == pb.NODE else "",
    }
    if options.network == pb.NODE:
        made["UTSMode"] = "host"
    return made


def container(options: pb.NamespaceOption, sandbox_id: str, *, host_network: bool) -> dict[str, Any]:
    """Return the part of a container's host configuration. Raises REQUEST_INVALID, UNSUPPORTED.

    That a target is a container of the same pod, the caller has seen to.
    """
    _check_users(options, "config.linux.security_context.namespace_options")
    joined = f"container:{sandbox_id}"
    made: dict[str, Any] = {
        "NetworkMode": joined,
        "IpcMode": "host" if options.ipc == pb.NODE else joined,
        "PidMode": _processes(options, joined),
    }
    if host_network:
        made["UTSMode"] = "host"
    return made


def _processes(options: pb.NamespaceOption, joined: str) -> str:
    if options.pid == pb.TARGET:
        if not options.target_id:
            raise invalid("config.linux.security_context.namespace_options.target_id", "must not be empty")
        return f"container:{options.target_id}"
    return {pb.NODE: "host", pb.POD: joined}.get(options.pid, "")


def _check_users(options: pb.NamespaceOption, field: str) -> None:
    if not options.HasField("userns_options") or options.userns_options.mode == pb.NODE:
        return
    mode = options.userns_options.mode
    if mode != pb.POD:
        raise invalid(f"{field}.userns_options.mode", "must be POD or NODE")
    raise unsupported(
        f"{field}.userns_options", "The Docker Engine has one mapping of users for all of its containers"
    )


def status(inspected_host: dict[str, Any], *, host_network: bool, shared_pid: bool) -> pb.NamespaceOption:
    """Tell the namespaces of a sandbox back."""
    pid = pb.NODE if inspected_host.get("PidMode") == "host" else pb.POD if shared_pid else pb.CONTAINER
    return pb.NamespaceOption(
        network=pb.NODE if host_network else pb.POD,
        ipc=pb.NODE if inspected_host.get("IpcMode") == "host" else pb.POD,
        pid=pid,
    )
