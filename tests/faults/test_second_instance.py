"""A second service that wants what a first one has: it goes, says whose it is, and harms nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel
from services.common.owners import UNKNOWN, listener
from tests.lab.ports import free_port
from tests.matrix.process import ROOT, Service

pytestmark = [pytest.mark.process, pytest.mark.asyncio]


async def answers(address: str) -> int:
    """Wait until a server answers; return what its health is."""
    async with asyncio.timeout(40), open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                request = health_pb2.HealthCheckRequest()
                return int((await call(stub.Check, request, deadline_seconds=5)).status)
            except RemoteError:
                await asyncio.sleep(0.05)


async def end_of(service: Service) -> tuple[int, dict[str, Any]]:
    """Wait until a service has ended; return its code and its last error."""
    code = await service.ended(40)
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return code, [line for line in lines if line["level"] == "error"][-1]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the settings of a service of a test's own."""
    return {
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
        "TRIPOD_CRI_ENDPOINT": f"unix://{folder}/nobody.sock",
        **more,
    }


@pytest.fixture
def namespace() -> Iterator[tuple[str, ...]]:
    """Return the words that run a program in a network namespace of its own."""
    name = f"si{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield ("ip", "netns", "exec", name)
    subprocess.run(["ip", "netns", "del", name], check=True)


async def rival(first: Service, second: Service, path: Path) -> dict[str, Any]:
    """Start both; the second must go and the first stay. Returns what the second said."""
    await first.start()
    try:
        before = await answers(f"unix://{path}"), os.stat(path).st_ino  # noqa: PTH116  # of a local file
        await second.start()
        code, said = await end_of(second)
        after = await answers(f"unix://{path}"), os.stat(path).st_ino  # noqa: PTH116  # of a local file
    finally:
        await second.kill()
        await first.kill()

    assert code == 1
    # The first may have come to serve meanwhile; it is never worse off.
    assert after[0] in (before[0], health_pb2.HealthCheckResponse.SERVING)
    assert after[1] == before[1]
    assert re.search(rf"\b{first.pid}\b", said["error"])
    return said


def pair(name: str, tmp_path: Path, **settings: Any) -> tuple[Service, Service]:
    """Make two services with the same settings, each with a log of its own."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    return Service(name, folders[0], **settings), Service(name, folders[1], **settings)


@pytest.mark.fault("F31")
@pytest.mark.parametrize(
    ("name", "reason"), [("kubelet", "STATE_IN_USE"), ("cadvisor", "SOCKET_IN_USE")], ids=str
)
async def test_a_second_service_names_the_first_and_goes(tmp_path: Path, name: str, reason: str) -> None:
    """It would share the state and the socket; the first one does not notice."""
    first, second = pair(name, tmp_path, environment=environment(tmp_path))

    said = await rival(first, second, tmp_path / f"run/{name}.sock")

    assert said["reason"] == reason


@pytest.mark.fault("F31")
@pytest.mark.netns
async def test_a_second_proxy_names_the_first_and_goes(tmp_path: Path, namespace: tuple[str, ...]) -> None:
    """Two writers of one table would undo each other's rules."""
    first, second = pair("proxy", tmp_path, environment=environment(tmp_path), prefix=namespace)

    said = await rival(first, second, tmp_path / "run/proxy.sock")

    assert said["reason"] == "SOCKET_IN_USE"


@pytest.mark.fault("F31")
@pytest.mark.parametrize("setting", ["TRIPOD_LISTEN", "TRIPOD_HTTP_LISTEN"], ids=["grpc", "http"])
async def test_a_port_that_is_taken_is_told_with_its_owner(tmp_path: Path, setting: str) -> None:
    """Also where the rival shares nothing else; no second server listens beside it."""
    port = free_port()
    taken = {setting: f"127.0.0.1:{port}"}
    first, second = pair("cadvisor", tmp_path, environment={})
    first = Service("cadvisor", tmp_path / "one", environment(tmp_path / "one", **taken))
    second = Service("cadvisor", tmp_path / "two", environment(tmp_path / "two", **taken))

    said = await rival(first, second, tmp_path / "one/run/cadvisor.sock")

    assert said["reason"] == "ADDRESS_IN_USE"
    assert f"127.0.0.1:{port}" in said["error"]
    assert not (tmp_path / "two/run/cadvisor.sock").exists()


@pytest.mark.fault("F31")
@pytest.mark.docker
@pytest.mark.netns
async def test_a_second_cri_server_names_the_first_and_goes(
    tmp_path: Path, namespace: tuple[str, ...]
) -> None:
    """Two of them would give one address twice."""
    mark = uuid.uuid4().hex[:5]
    state, path = tmp_path / "state", tmp_path / "cri.sock"
    words = [*namespace, sys.executable, "-m", "services.kubelet.cri", "--state-directory", str(state)]
    words += ["--node-name", f"si-{mark}", "--bridge", f"si{mark}", "--veth-prefix", f"s{mark[:3]}"]
    words += ["--chain-prefix", f"SI{mark.upper()}", "--pod-cidr", "10.199.7.0/24"]
    log = tmp_path / "first.log"
    with log.open("wb") as output:
        first = await asyncio.create_subprocess_exec(
            *words, "--socket", str(path), cwd=ROOT, stdout=output, stderr=output
        )
    try:
        await answers(f"unix://{path}")
        others = [path, tmp_path / "other.sock"]
        said = []
        for other in others:
            second = await asyncio.create_subprocess_exec(
                *(*words, "--socket", str(other)), cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(40):
                said.append(((await second.communicate())[0].decode(), second.returncode))
        alive = await answers(f"unix://{path}")
    finally:
        first.terminate()
        await first.wait()

    assert alive == health_pb2.HealthCheckResponse.SERVING
    for text, code in said:
        assert code == 1
        assert "NETWORK_STATE_IN_USE" in text
        assert str(first.pid) in text


@pytest.mark.fault("F31")
async def test_the_owner_of_a_port_is_found_or_said_to_be_unknown() -> None:
    """By the kernel's tables alone."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = int(listening.getsockname()[1])
        found = listener(port)

    assert found == str(os.getpid())
    assert listener(port) == UNKNOWN
