"""Kill the proxy at every instant, in a network namespace of its own, under traffic.

The story: a service with two endpoints works and is asked all the time. The proxy
starts, an endpoint comes and goes, another service comes and goes, and somebody else
writes into our table.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.proxy.v1 import proxy_service_pb2 as pb
from tripod.proxy.v1 import proxy_service_pb2_grpc as pb_grpc

from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel
from tests.fakes.kubelet_server import FakeKubelet, kubelet_server
from tests.matrix.process import ROOT, START_SECONDS, Failure, Service, enumerate_instants, until

T = TypeVar("T")
VIP, OTHER_VIP, NODE = "10.96.0.10", "10.96.0.11", "10.77.1.1"
BACKENDS = ("10.77.0.2", "10.77.0.3", "10.77.0.4")
TABLE = "tripod-proxy"
CAPS = {"open files": 60, "threads": 30, "tasks": 100}
REPAIR_SECONDS = 2.0


def port(number: int, protocol: object_pb.Protocol.ValueType, node_port: int = 0) -> object_pb.ServicePort:
    """Write a service port to the backends."""
    name = f"p{number}"
    return object_pb.ServicePort(
        name=name, port=number, target_port=7000, protocol=protocol, node_port=node_port
    )


@dataclass
class World:
    """A namespace, its proxy, and the kubelet that it watches."""

    netns: str
    kubelet: FakeKubelet
    service: Service
    channel: Any
    client: asyncio.subprocess.Process | None = None

    def run(self, *words: str) -> str:
        """Run a program in the namespace."""
        return subprocess.run(
            ["ip", "netns", "exec", self.netns, *words],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout

    async def ask(self, method: Callable[[], Awaitable[T]]) -> T:
        """Call until it is answered; a dead proxy is started again."""
        for _ in range(400):
            try:
                return await method()
            except RemoteError:
                await self.service.revive()
                await asyncio.sleep(0.05)
        raise Failure(f"I2 convergence: the proxy does not answer: {self.service.tail()}")

    async def programmed(self, name: str, endpoints: int) -> None:
        """Wait until the kernel has a service's present form with so many endpoints on every port."""
        stub = pb_grpc.ProxyServiceStub(self.channel)

        async def holds() -> bool:
            answer = await self.ask(
                lambda: call(stub.ListServices, pb.ListServicesRequest(), deadline_seconds=5)
            )
            for found in answer.services:
                if found.name == name:
                    behind = found.error or found.programmed_revision < found.decided_revision
                    return not behind and all(len(p.endpoints) == endpoints for p in found.ports)
            return False

        await until(holds, f"{name} is programmed with {endpoints} endpoints")
        await until(self.clean, "the kernel has it")

    async def clean(self) -> bool:
        """Tell whether an audit looks at everything and finds nothing."""
        answer = await self.audit()
        return not answer.findings and not answer.unavailable

    async def audit(self) -> pb.AuditResponse:
        """Compare the kernel with what was decided."""
        stub = pb_grpc.ProxyServiceStub(self.channel)
        answer: pb.AuditResponse = await self.ask(
            lambda: call(stub.Audit, pb.AuditRequest(), deadline_seconds=10)
        )
        return answer

    def listing(self) -> str:
        """Return our rules as the kernel lists them."""
        return self.run("nft", "list", "table", "ip", TABLE)


@asynccontextmanager
async def namespace() -> AsyncIterator[str]:
    """Make a namespace with a wire and the addresses of backends; yields its name."""
    netns = f"mx{uuid.uuid4().hex[:8]}"
    text = f"""
        ip netns add {netns}; ip -n {netns} link set lo up
        ip -n {netns} link add br0 type bridge; ip -n {netns} addr add {NODE}/24 dev br0
        ip -n {netns} link set br0 up; ip -n {netns} route add default dev br0
    """
    text += "".join(f"ip -n {netns} addr add {address}/32 dev lo\n" for address in BACKENDS)
    await asyncio.to_thread(subprocess.run, ["sh", "-ec", text], check=True, capture_output=True)
    try:
        yield netns
    finally:
        await asyncio.to_thread(subprocess.run, ["ip", "netns", "del", netns], check=True)


@asynccontextmanager
async def proxy_in(netns: str, folder: Path, settings: Mapping[str, str]) -> AsyncIterator[World]:
    """Make a proxy in a namespace, not started yet, and the kubelet that it watches."""
    kubelet = FakeKubelet()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = kubelet_server(kubelet, folder / "kubelet.sock")
    await server.start()
    environment = {
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_KUBELET_ADDRESS": f"unix://{folder}/kubelet.sock",
        **settings,
    }
    service = Service("proxy", folder, environment, prefix=("ip", "netns", "exec", netns))
    channel = open_channel(f"unix://{folder}/run/proxy.sock")
    made = World(netns, kubelet, service, channel)
    try:
        yield made
    finally:
        if made.client is not None and made.client.returncode is None:
            made.client.kill()
            await made.client.wait()
        await service.kill()
        await channel.close(None)
        await server.stop(0.1)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Make a namespace with backends, an unarmed proxy that has programmed it, and a client that asks."""
    folder.mkdir(parents=True)
    async with namespace() as netns, proxy_in(netns, folder, {}) as made:
        made.kubelet.put_service(
            "web", VIP, port(80, object_pb.PROTOCOL_TCP, 30080), port(53, object_pb.PROTOCOL_UDP)
        )
        made.kubelet.put_pod("one", "web", BACKENDS[0])
        made.kubelet.put_pod("two", "web", BACKENDS[1])
        await first_life(made)
        await made.service.kill()
        yield made


async def first_life(made: World) -> None:
    """Let an unarmed proxy program the service `web`, and a client ask it."""
    backends = " ".join(BACKENDS)
    starting = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", made.netns, "sh", "-c"),
        f"while ! nft list table ip {TABLE} 2>/dev/null | grep -q 'goto lb-2'; do sleep 0.05; done;"
        f"exec {sys.executable} -m tests.matrix.client {VIP} 80 53 {backends}",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    made.client = starting
    # The backends answer before the rules are there, so that nobody is refused.
    await made.service.start()
    assert starting.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await starting.stdout.readline()
    except TimeoutError:
        line = b"nothing in time"
    if line != b"ready\n":
        raise Failure(f"the client did not start: {line!r} {made.service.tail()}")


async def tell(made: World) -> None:
    """Go through the story."""
    await made.programmed("web", 2)
    made.kubelet.put_pod("three", "web", BACKENDS[2])
    await made.programmed("web", 3)
    made.kubelet.pods.delete("pod-three")
    await made.programmed("web", 2)
    made.kubelet.put_service("other", OTHER_VIP, port(81, object_pb.PROTOCOL_UDP))
    made.kubelet.put_pod("four", "other", BACKENDS[2])
    await made.programmed("other", 1)
    made.kubelet.services.delete("service-other")
    made.kubelet.pods.delete("pod-four")

    async def alone() -> bool:
        # Killed by the news, it must first come back.
        await made.service.revive()
        return OTHER_VIP not in made.listing() and await made.clean()

    await until(alone, "the other service is gone")
    await _meddle(made)


async def _meddle(made: World) -> None:
    """Write into our table; it must be put right soon, and nobody may notice."""
    if "counter" in made.listing():
        raise Failure("our own rules have a counter: the story must write something else")
    made.run("nft", "add", "rule", "ip", TABLE, "services", "counter")

    async def repaired() -> bool:
        await made.service.revive()
        return "counter" not in made.listing() and await made.clean()

    limit = REPAIR_SECONDS + 10.0  # A killed proxy must first come back.
    await until(repaired, "a foreign rule is removed", limit)


async def judge(made: World) -> None:
    """Check the invariants after the story. Raises `Failure`."""
    answer = await made.audit()
    if answer.findings or answer.unavailable:
        raise Failure(f"I4 no leak: {[f.id for f in answer.findings]}, not known: {answer.unavailable}")
    use = answer.process
    held = {"open files": use.open_file_count, "threads": use.thread_count, "tasks": use.task_count}
    over = {name: count for name, count in held.items() if count > CAPS[name]}
    if over:
        raise Failure(f"I7 bounded: {over}, caps are {CAPS}")
    assert made.client is not None
    async with asyncio.timeout(20):
        output, _ = await made.client.communicate(b"end\n")
    counts = json.loads(output.splitlines()[-1])
    if counts["asked"] < 10:
        raise Failure(f"the client hardly asked: {counts}")
    if counts["failed"] or counts["broken"] or counts["lost"]:
        raise Failure(f"I8 dataplane: {counts}")
    await made.service.terminate()
    if BACKENDS[1] not in made.listing():
        raise Failure("I8 dataplane: the rules went with the proxy")


class ProxyMatrix:
    """The instants of the proxy's story."""

    name = "proxy"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def instants(self) -> list[tuple[str, int]]:
        """Go through the story once without kills."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "instants.log"
        async with world(self._folder / "list") as made:
            await made.service.start(f"*=log({log})")
            await tell(made)
            await judge(made)
        return enumerate_instants(log.read_text().split(), 4)

    async def run(self, instant: str, occurrence: int) -> bool:
        """Kill at one instant."""
        off = f"{occurrence - 1}*off->" if occurrence > 1 else ""
        async with world(self._folder / f"{instant}-{occurrence}") as made:
            await made.service.start(f"{instant}={off}1*kill->off")
            await tell(made)
            await judge(made)
            return made.service.killed_itself
