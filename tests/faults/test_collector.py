"""A collector of traces that is away, or accepts and never answers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from tripod.cadvisor.v1 import stats_service_pb2 as pb
from tripod.cadvisor.v1 import stats_service_pb2_grpc as pb_grpc

from services.common import telemetry
from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel
from tests.matrix.process import Service

pytestmark = pytest.mark.process
METRIC = "tripod_spans_dropped_total"
KINDS = ["away", "silent"]


@contextmanager
def collector(kind: str) -> Iterator[str]:
    """Return the address of one that refuses connections, or takes them and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if kind == "silent":
            listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.fault("F33")
@pytest.mark.parametrize("kind", KINDS)
def test_spans_cost_nothing_more_and_those_lost_are_counted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into the queue is dropped at once; the end waits two seconds at most."""
    with collector(kind) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        tracing = telemetry.setup("tripod-test", ring_capacity=10)
        took = []
        for _ in range(6000):
            begin = time.perf_counter()
            with telemetry.span("x", parent=""):
                pass
            took.append(time.perf_counter() - begin)
        lost = telemetry.dropped_spans()
        begin = time.monotonic()
        tracing.shutdown()
        ended = time.monotonic() - begin

    assert sorted(took)[len(took) // 2] < 0.002
    # 2,048 wait, 512 may be on their way; the rest does not fit.
    assert lost >= 6000 - 2048 - 512
    assert ended < 4


async def metric(port: int) -> float:
    """Return how many spans were dropped, as a service's page says."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            text = await answer.text()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(METRIC))


@pytest.mark.fault("F33")
@pytest.mark.asyncio
@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_serves_and_ends_as_ever_without_its_collector(kind: str, tmp_path: Path) -> None:
    """Calls are answered, the page tells of the loss, and SIGTERM takes its usual time and two seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with collector(kind) as address:
        environment = {
            "TRIPOD_RUN_DIRECTORY": str(tmp_path),
            "TRIPOD_CRI_ADDRESS": f"unix://{tmp_path}/nobody",
            "TRIPOD_HTTP_LISTEN": f"127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        }
        service = Service("cadvisor", tmp_path, environment)
        await service.start()
        try:
            took = await _ask(tmp_path)
            async with asyncio.timeout(60):
                while await metric(port) < 1:  # noqa: ASYNC110  # the condition lies in another process
                    await asyncio.sleep(0.1)
            ended = await service.terminate()
        finally:
            await service.kill()

    assert sorted(took)[len(took) // 2] < 0.1
    assert ended < 8
    assert "Dropped spans that the collector did not take" in service.log.read_text()


async def _ask(folder: Path) -> list[float]:
    """Make fifty calls once the service answers; return how long each took."""
    took: list[float] = []
    async with asyncio.timeout(60), open_channel(f"unix://{folder}/cadvisor.sock") as channel:
        stub = pb_grpc.StatsServiceStub(channel)
        while len(took) < 50:
            begin = time.monotonic()
            try:
                await call(stub.ListStats, pb.ListStatsRequest(), deadline_seconds=5)
            except RemoteError:
                await asyncio.sleep(0.05)
                continue
            took.append(time.monotonic() - begin)
    return took
