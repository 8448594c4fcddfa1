"""`tripod audit` against services that tell what a test says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tripod.kubelet.v1 import node_service_pb2 as pb
from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc
from tripod.proxy.v1 import proxy_service_pb2 as proxy_pb
from tripod.proxy.v1 import proxy_service_pb2_grpc as proxy_grpc

from cli.errors import Exit
from services.common.grpcserver import Listener, Servicer, build_server
from tests.lab.command import tripod

pytestmark = pytest.mark.asyncio
CLEAN = pb.AuditResponse(
    categories=[pb.AuditCategory(name="container", found_count=3), pb.AuditCategory(name="sandbox")],
    process=pb.ProcessUse(service="kubelet", open_file_count=50, thread_count=9, resident_bytes=91 << 20),
)
LEAK = pb.AuditFinding(
    category="container",
    id="c0ffee",
    problem=pb.AUDIT_PROBLEM_LEAKED,
    pod_uid="uid-1",
    message="No pod has this UID",
)
STEP = pb.AuditFinding(category="address", id="10.201.0.9", problem=pb.AUDIT_PROBLEM_MISSING)
PROXY = proxy_pb.AuditResponse(
    categories=[pb.AuditCategory(name="rule", found_count=7)], process=pb.ProcessUse(service="proxy")
)


def with_findings(*findings: pb.AuditFinding, **values: Any) -> pb.AuditResponse:
    """Make an answer of the kubelet."""
    made = pb.AuditResponse(findings=findings, **values)
    made.MergeFrom(CLEAN)
    return made


class Kubelet(node_grpc.NodeServiceServicer):
    """Gives its answers in order, and the last one again and again."""

    def __init__(self, answers: list[pb.AuditResponse]) -> None:
        self._answers = answers

    async def Audit(self, request: pb.AuditRequest, context: Any) -> pb.AuditResponse:
        """Give the next answer."""
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Proxy(proxy_grpc.ProxyServiceServicer):
    """Gives one answer."""

    def __init__(self, answer: proxy_pb.AuditResponse) -> None:
        self._answer = answer

    async def Audit(self, request: proxy_pb.AuditRequest, context: Any) -> proxy_pb.AuditResponse:
        """Give it."""
        return self._answer


@asynccontextmanager
async def serving(
    folder: Path, *answers: pb.AuditResponse, proxy: proxy_pb.AuditResponse | None = PROXY
) -> AsyncIterator[None]:
    """Serve both services on sockets in a folder."""
    # Only `Audit` is asked here; the other calls answer UNIMPLEMENTED.
    told = Kubelet(list(answers))  # type: ignore[abstract]
    kubelet = partial(node_grpc.add_NodeServiceServicer_to_server, told)
    servers = [
        build_server(
            [Servicer("tripod.kubelet.v1.NodeService", kubelet)],
            listeners=[Listener(f"unix://{folder}/kubelet.sock")],
        )
    ]
    if proxy is not None:
        beside = Proxy(proxy)  # type: ignore[abstract]  # as above
        added = partial(proxy_grpc.add_ProxyServiceServicer_to_server, beside)
        servers.append(
            build_server(
                [Servicer("tripod.proxy.v1.ProxyService", added)],
                listeners=[Listener(f"unix://{folder}/proxy.sock")],
            )
        )
    for server in servers:
        await server.start()
    try:
        yield
    finally:
        for server in servers:
            await server.stop(0.1)


async def test_a_clean_node_is_exit_code_zero(tmp_path: Path) -> None:
    """With what was looked at, and what the services hold."""
    async with serving(tmp_path, CLEAN):
        ended = await tripod("audit", run_directory=tmp_path)

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "Looked at: container 3, rule 7, sandbox 0",
        "",
        "Nothing leaked, nothing is missing.",
        "",
        "SERVICE   FILES   THREADS   TASKS   MEMORY",
        "kubelet   50      9         0       91 MiB",
        "proxy     0       0         0       0 MiB",
    ]


async def test_what_both_looks_saw_is_exit_code_one(tmp_path: Path) -> None:
    """A step that was under way at the first look is no finding."""
    async with serving(tmp_path, with_findings(LEAK, STEP), with_findings(LEAK)):
        ended = await tripod("audit", "--wait", "0.05", run_directory=tmp_path)

    assert ended.code == Exit.FAILED
    assert "leaked    container   c0ffee   uid-1     No pod has this UID" in ended.out
    assert "10.201.0.9" not in ended.out
    assert "Nothing leaked" not in ended.out


async def test_what_only_the_second_look_saw_is_no_finding(tmp_path: Path) -> None:
    """It may be a step that has just begun."""
    async with serving(tmp_path, with_findings(STEP), with_findings(LEAK)):
        ended = await tripod("audit", "--wait", "0.05", run_directory=tmp_path)

    assert ended.code == 0
    assert "Nothing leaked, nothing is missing." in ended.out


async def test_programs_read_the_same(tmp_path: Path) -> None:
    """Every field of a finding, and the counts."""
    async with serving(tmp_path, with_findings(LEAK)):
        ended = await tripod("audit", "-o", "json", "--wait", "0", run_directory=tmp_path)

    value = json.loads(ended.out)
    assert ended.code == Exit.FAILED
    assert value["findings"] == [
        {
            "service": "kubelet",
            "category": "container",
            "id": "c0ffee",
            "problem": "leaked",
            "pod_uid": "uid-1",
            "message": "No pod has this UID",
        }
    ]
    assert value["counts"] == {"container": 3, "rule": 7, "sandbox": 0}


async def test_what_could_not_be_looked_at_is_not_called_clean(tmp_path: Path) -> None:
    """Neither a part of the kubelet, nor the proxy that is away."""
    blind = with_findings(unavailable={"runtime": "no answer"})
    async with serving(tmp_path, blind, proxy=None):
        ended = await tripod("audit", run_directory=tmp_path)

    assert ended.code == Exit.FAILED
    assert "Could not look at proxy: it does not answer" in ended.out
    assert "Could not look at runtime: no answer" in ended.out
    assert "Nothing leaked" not in ended.out


async def test_the_proxys_findings_stand_beside_the_kubelets(tmp_path: Path) -> None:
    """Such as a route that is missing, and one that is there for nobody."""
    missing = pb.AuditFinding(category="route", id="10.1.1.0/24", problem=pb.AUDIT_PROBLEM_MISSING)
    left = pb.AuditFinding(category="route", id="10.1.9.0/24", problem=pb.AUDIT_PROBLEM_LEAKED)
    told = proxy_pb.AuditResponse(
        findings=[missing, left], categories=[pb.AuditCategory(name="route", found_count=1)]
    )
    async with serving(tmp_path, CLEAN, proxy=told):
        ended = await tripod("audit", "--wait", "0", run_directory=tmp_path)

    assert ended.code == Exit.FAILED
    assert "Looked at: container 3, route 1, sandbox 0" in ended.out
    assert "missing   route      10.1.1.0/24" in ended.out
    assert "leaked    route      10.1.9.0/24" in ended.out


async def test_a_node_that_is_away_is_exit_code_five(tmp_path: Path) -> None:
    """And the error says how to start it."""
    ended = await tripod("audit", "--json", run_directory=tmp_path)

    assert (ended.code, ended.out) == (Exit.UNREACHABLE, "")
    assert "Start it with `make up`" in ended.err


async def test_an_older_node_is_told_as_such(tmp_path: Path) -> None:
    """A call that it does not know is no riddle."""
    async with serving(tmp_path, CLEAN):
        ended = await tripod("explain", "pod/a", run_directory=tmp_path)

    assert ended.code == Exit.FAILED
    assert "older than this command" in ended.err
