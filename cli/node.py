"""Find the node, and call it.

A unix socket in the run directory comes first, since it needs no token; then
loopback TCP with the token of the state directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from cli.errors import CliError, Exit

DEADLINE_SECONDS = 30.0
_PORTS = {"kubelet": 50051, "proxy": 50052, "cadvisor": 50053}
_MESSAGE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where one service listens, and what it wants to see."""

    service: str
    address: str
    token: str = ""


def find(service: str, environ: dict[str, str] | None = None) -> Place:
    """Find a service of this machine: `TRIPOD_ADDRESS` (the kubelet's), a socket, or loopback TCP."""
    env = dict(os.environ) if environ is None else environ
    chosen = (
        env.get("TRIPOD_ADDRESS", "")
        if service == "kubelet"
        else env.get(f"TRIPOD_{service.upper()}_ADDRESS", "")
    )
    if chosen:
        return Place(service, chosen, _token(env))
    directory = env.get("TRIPOD_RUN_DIRECTORY", "")
    socket = Path(directory or "/run/tripod") / f"{service}.sock"
    # Who names a folder means that node, and no other that may listen on loopback.
    if directory or os.access(socket, os.R_OK | os.W_OK):
        return Place(service, f"unix://{socket}")
    return Place(service, f"127.0.0.1:{_PORTS[service]}", _token(env))


def _token(env: dict[str, str]) -> str:
    if env.get("TRIPOD_TOKEN"):
        return env["TRIPOD_TOKEN"]
    state = env.get("TRIPOD_STATE_DIRECTORY") or "/var/lib/tripod"
    path = Path(env.get("TRIPOD_TOKEN_FILE") or Path(state) / "node-token")
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class Node:
    """Open channels to the three services; made on first use. `environ` is that of the process by default."""

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        self._environ = environ
        self._channels: dict[str, grpc.Channel] = {}
        self._places: dict[str, Place] = {}

    def channel(self, service: str) -> grpc.Channel:
        """Return the channel of a service."""
        if service not in self._channels:
            place = self._places[service] = find(service, self._environ)
            self._channels[service] = grpc.insecure_channel(place.address, options=_options())
        return self._channels[service]

    def metadata(self, service: str = "kubelet") -> list[tuple[str, str]]:
        """Return what a changing call presents."""
        self.channel(service)
        token = self._places[service].token
        return [("authorization", f"Bearer {token}")] if token else []

    def objects(self) -> Any:
        """Return a stub of ObjectService."""
        from tripod.kubelet.v1 import object_service_pb2_grpc as pb_grpc

        return pb_grpc.ObjectServiceStub(self.channel("kubelet"))

    def pods(self) -> Any:
        """Return a stub of PodService."""
        from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

        return pb_grpc.PodServiceStub(self.channel("kubelet"))

    def nodes(self) -> Any:
        """Return a stub of NodeService."""
        from tripod.kubelet.v1 import node_service_pb2_grpc as pb_grpc

        return pb_grpc.NodeServiceStub(self.channel("kubelet"))

    def proxy(self) -> Any:
        """Return a stub of ProxyService."""
        from tripod.proxy.v1 import proxy_service_pb2_grpc as pb_grpc

        return pb_grpc.ProxyServiceStub(self.channel("proxy"))

    def traces(self, service: str) -> Any:
        """Return a stub of a service's TraceService."""
        from tripod.trace.v1 import trace_service_pb2_grpc as pb_grpc

        return pb_grpc.TraceServiceStub(self.channel(service))

    def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            channel.close()


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        # A log that is followed ends when its node vanishes without a word.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.default_authority", "localhost"),
        ("grpc.enable_http_proxy", 0),
    ]


@contextmanager
def connected() -> Iterator[Node]:
    """Give a node for the length of a block, and turn its errors into ours."""
    node = Node()
    try:
        yield node
    except grpc.RpcError as error:
        raise explain(error) from error
    finally:
        node.close()


def explain(error: Any) -> CliError:
    """Say what a failed call means and what to do."""
    code, message = error.code(), error.details() or str(error.code())
    if code is grpc.StatusCode.UNAVAILABLE:
        return CliError(
            f"Cannot reach the node: {message}",
            code=Exit.UNREACHABLE,
            advice="Start it with `make up`; `docker-compose ps` shows its services.",
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return CliError(
            message,
            code=Exit.FAILED,
            advice="Run as root or as a member of the engine's group, or set TRIPOD_TOKEN_FILE.",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return CliError(
            "The node does not know this call: it is older than this command",
            advice="Bring it up to date with `make up`; pods go on meanwhile.",
        )
    if code is grpc.StatusCode.NOT_FOUND:
        return CliError(message, code=Exit.NOT_FOUND)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CliError(message, code=Exit.NOT_READY)
    return CliError(message + "".join(f"\n  {line}" for line in violations(error)))


def violations(error: Any) -> list[str]:
    """List the field faults of an error, one line each."""
    from google.rpc import error_details_pb2, status_pb2

    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            details = status_pb2.Status.FromString(value).details
            bad = error_details_pb2.BadRequest()
            found = [detail for detail in details if detail.Is(bad.DESCRIPTOR) and detail.Unpack(bad)]
            return [f"{fault.field}: {fault.description}" for fault in bad.field_violations] if found else []
    return []
