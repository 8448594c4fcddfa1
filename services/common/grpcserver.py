"""Build a gRPC server as every service has it: health, reflection, errors, limits, drain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace

from services.common.grpcclient import KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS
from services.common.grpcinterceptor import CallRules, Calls, ServerInterceptor
from services.common.logs import get_logger
from services.common.owners import address_in_use
from services.common.security import give_to_group
from services.common.unixsocket import SocketClaim

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Servicer:
    """A gRPC service and how to add it: `add` is the generated function with its servicer bound."""

    full_name: str
    add: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen: `unix:///path` or `127.0.0.1:port` (port 0 picks one)."""

    address: str
    socket_group: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of one server."""

    concurrent_streams: int = 100
    concurrent_rpcs: int = 200
    message_bytes: int = 16 << 20
    default_deadline_seconds: float = 30.0
    # How long a reader may leave one message unread: of a watch, and of a log or a command's output.
    stalled_watch_seconds: float = 60.0
    stalled_stream_seconds: float = 4 * 3600.0


def build_server(
    servicers: Sequence[Servicer],
    *,
    listeners: Sequence[Listener],
    changing_methods: frozenset[str] = frozenset(),
    token: Callable[[], str] | None = None,
    limits: Limits | None = None,
    reflect: bool = True,
    tracer: trace.Tracer | None = None,
) -> GrpcServer:
    """Make a server that listens on nothing yet.

    `changing_methods` (such as `/tripod.kubelet.v1.ObjectService/ApplyObjects`) need the
    token that `token` returns when they come over TCP. Spans go to `tracer`, where given.
    """
    limits = limits or Limits()
    calls = Calls()
    rules = CallRules(
        changing_methods,
        token,
        limits.default_deadline_seconds,
        limits.stalled_watch_seconds,
        limits.stalled_stream_seconds,
        tracer,
    )
    server = grpc.aio.server(
        interceptors=[ServerInterceptor(rules, calls)],
        options=_options(limits),
        maximum_concurrent_rpcs=limits.concurrent_rpcs,
    )
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for servicer in servicers:
        servicer.add(server)
    names = [servicer.full_name for servicer in servicers]
    if reflect:
        reflected = (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*reflected, reflection.SERVICE_NAME), server)
    return GrpcServer(server, health, names, listeners, calls)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", limits.concurrent_streams),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


class GrpcServer:
    """A server with its health and its listeners."""

    def __init__(
        self,
        server: grpc.aio.Server,
        health: HealthServicer,
        names: Sequence[str],
        listeners: Sequence[Listener],
        calls: Calls,
    ) -> None:
        self._server = server
        self._health = health
        self._names = ["", *names]
        self._listeners = listeners
        self._calls = calls
        self._claims: list[SocketClaim] = []
        self.addresses: tuple[str, ...] = ()

    async def start(self) -> None:
        """Listen everywhere, not yet serving by its health.

        Raises `SOCKET_IN_USE` or `ADDRESS_IN_USE`; then it listens nowhere.
        """
        await self.set_serving(False)
        try:
            self.addresses = tuple(self._listen(listener) for listener in self._listeners)
            await self._server.start()
        except BaseException:
            self._release()
            raise
        log.info("Started gRPC server", addresses=list(self.addresses))

    def _listen(self, listener: Listener) -> str:
        if listener.address.startswith("unix:"):
            return self._listen_unix(listener)
        port = self._bind(listener.address)
        host = listener.address.rsplit(":", 1)[0]
        return f"{host}:{port}"

    def _listen_unix(self, listener: Listener) -> str:
        path = Path(listener.address.removeprefix("unix:").removeprefix("//"))
        claim = SocketClaim(path)
        claim.acquire()
        self._claims.append(claim)
        # grpcio makes the socket with the process's umask; close the moment before chmod.
        previous = os.umask(0o177)
        try:
            self._bind(listener.address)
        finally:
            os.umask(previous)
        give_to_group(path, listener.socket_group)
        return listener.address

    def _bind(self, address: str) -> int:
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise address_in_use(address) from error
        if port == 0:
            raise address_in_use(address)
        return port

    async def set_serving(self, serving: bool) -> None:
        """Say by `grpc.health.v1` whether the services serve."""
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if serving else status.NOT_SERVING
        for name in self._names:
            await self._health.set(name, value)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Refuse new calls, let running ones end for `grace_seconds`, cancel the rest, remove sockets.

        grpcio's own `stop` returns before handlers have cleaned up, so this waits for them too.
        """
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
        if not await self._calls.wait(1.0):
            log.warning("Left calls running at the end", grace_seconds=grace_seconds)
        self._release()

    async def wait(self) -> None:
        """Wait until the server was stopped."""
        await self._server.wait_for_termination()

    def _release(self) -> None:
        for claim in self._claims:
            claim.release()
        self._claims.clear()


async def serve_until(server: GrpcServer, stop: asyncio.Event, *, grace_seconds: float = 5.0) -> None:
    """Serve until `stop` is set, then drain."""
    await server.start()
    await server.set_serving(True)
    try:
        await stop.wait()
    finally:
        await server.stop(grace_seconds)
