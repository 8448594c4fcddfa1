"""The doctor at a node that answers over real sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc

from cli import VERSION
from cli.doctor.core.node import judge
from cli.doctor.facts import NodeFacts, Settings
from cli.doctor.finding import Level
from cli.doctor.gather import node as node_facts
from services.common import telemetry, traceserver
from services.common.clock import SystemClock
from services.common.grpcserver import Listener, Servicer, build_server
from services.kubelet.core.audit import Audit
from services.kubelet.core.node import Disk, Look, NodeStatus
from services.kubelet.core.node import judge as judge_node
from services.kubelet.core.summary import Summary
from services.kubelet.objects.claim import StateClaim
from services.kubelet.server.nodes import NodeServicer

pytestmark = pytest.mark.asyncio


async def never() -> tuple[Audit, Mapping[str, str]]:
    """Refuse: nobody audits here."""
    raise AssertionError("the doctor does not audit")


async def no_summary() -> Summary:
    """Refuse: nobody asks for use here."""
    raise AssertionError("the doctor does not ask for use")


@asynccontextmanager
async def a_node(
    folder: Path, *faults: str, refused: Mapping[str, str], services: Iterable[str]
) -> AsyncIterator[None]:
    """Serve what the doctor asks, as the services do."""
    blank = NodeStatus("n", {}, {}, (), {}, "10.201.0.0/24", "10.202.0.0/16")
    status = judge_node(
        blank, Look(list(faults), 1 << 40, [Disk("the state", 0.5)], 0.1), SystemClock().now()
    )
    servicer = NodeServicer(lambda: status, no_summary, never, lambda: refused)
    ring = telemetry.setup("tripod-test").ring
    nodes = Servicer(
        "tripod.kubelet.v1.NodeService", partial(node_grpc.add_NodeServiceServicer_to_server, servicer)
    )
    servers = []
    for name in services:
        served = [traceserver.servicer(ring), *([nodes] if name == "kubelet" else [])]
        servers.append(build_server(served, listeners=[Listener(f"unix://{folder}/{name}.sock")]))
    claim = StateClaim(folder)
    claim.acquire()
    for server in servers:
        await server.start()
    try:
        yield
    finally:
        for server in servers:
            await server.stop(0.1)
        claim.release()


async def look(folder: Path) -> NodeFacts:
    """Gather, away from the servers' loop."""
    settings = Settings(docker_host=f"unix://{folder}/d.sock", run_directory=folder, state_directory=folder)
    return await asyncio.to_thread(node_facts.gather, settings, {"TRIPOD_RUN_DIRECTORY": str(folder)})


ALL = ("kubelet", "proxy", "cadvisor")


async def test_a_good_node_is_seen_as_it_is(tmp_path: Path) -> None:
    """Versions, conditions, manifests, sockets and the lock."""
    async with a_node(tmp_path, refused={}, services=ALL):
        facts = await look(tmp_path)

    assert [(s.name, s.answers, s.version) for s in facts.services] == [(n, True, VERSION) for n in ALL]
    assert all(s.socket is not None and s.socket.mode & 0o007 == 0 for s in facts.services)
    assert facts.refused_manifests == {}
    assert ("Ready", True, "The kubelet runs pods") in facts.conditions
    assert (facts.lock_owner, facts.lock_owner_alive) == (os.getpid(), True)
    assert [f.what for f in judge(facts) if f.level is Level.BROKEN] == []


async def test_the_faults_of_a_node_are_seen(tmp_path: Path) -> None:
    """A service that is away, a degraded store, a refused manifest."""
    refused = {"/manifests/a.yaml": "spec.containers: missing"}
    fault = "The disk of the object store is full"
    async with a_node(tmp_path, fault, refused=refused, services=("kubelet", "cadvisor")):
        facts = await look(tmp_path)

    broken = [f.what for f in judge(facts) if f.level is Level.BROKEN]
    assert broken == [
        f"proxy does not answer: nothing listens at {tmp_path}/proxy.sock",
        "The node is not Ready: The disk of the object store is full",
        "Manifest /manifests/a.yaml is refused: spec.containers: missing",
    ]


@pytest.mark.process
async def test_a_service_that_hangs_costs_seconds_only(tmp_path: Path) -> None:
    """Its socket takes connections, and nothing answers."""
    accepted: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_unix_server(silent, str(tmp_path / "kubelet.sock"))
    facts = await look(tmp_path)
    for writer in accepted:
        writer.close()
    server.close()

    assert accepted
    assert not facts.services[0].answers
    assert facts.services[0].error
