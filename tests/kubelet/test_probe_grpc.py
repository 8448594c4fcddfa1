"""gRPC probes against real servers: what they serve, and how they fail."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from services.kubelet.adapters.probe_runner import NetworkProbeRunner
from services.kubelet.core.model import ContainerId, GrpcCheck, Probe
from services.kubelet.ports import ProbeTarget
from tests.builders import a_container, a_pod
from tests.fakes.runtime import FakeRuntime

pytestmark = pytest.mark.asyncio
TARGET = ProbeTarget(a_pod(), a_container(), ContainerId("app-0"), "127.0.0.1")


@asynccontextmanager
async def serving(*, health: bool = True) -> AsyncIterator[int]:
    """A server with one service that serves and one that does not; yields its port."""
    server = grpc.aio.server()
    if health:
        servicer = HealthServicer()
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        await servicer.set("ill", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def probe(port: int, service: str = "", timeout_seconds: int = 5) -> tuple[bool, str]:
    """Run one probe."""
    runner = NetworkProbeRunner(FakeRuntime())
    wanted = Probe(GrpcCheck(port, service), timeout_seconds=timeout_seconds)
    found = await runner.run(wanted, TARGET)
    await runner.close()
    assert found is not None
    return found.success, found.message


async def test_a_server_that_serves_is_healthy() -> None:
    """SERVING alone."""
    async with serving() as port:
        assert await probe(port) == (True, "")
        assert await probe(port, "ill") == (False, "the service says NOT_SERVING")
        assert await probe(port, "nobody") == (False, "the server knows no service 'nobody'")


async def test_a_server_without_the_health_service_says_so() -> None:
    """So its author knows what to add."""
    async with serving(health=False) as port:
        assert await probe(port) == (False, "the server does not implement grpc.health.v1.Health")


async def test_nobody_and_a_server_that_says_nothing_fail_in_time() -> None:
    """Within the probe's time-out."""

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with asyncio.timeout(5):
            hung = await probe(port, timeout_seconds=1)
    away = await probe(port, timeout_seconds=1)

    assert hung[0] is away[0] is False
    assert any(word in hung[1] for word in ("1 s", "DEADLINE", "timed out"))
    assert "UNAVAILABLE" in away[1] or "1 s" in away[1]
