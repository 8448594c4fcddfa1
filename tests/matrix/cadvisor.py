"""Kill cAdvisor at every instant, on real cgroups that the matrix makes itself.

The story: a bystander's cgroup is there all the time. Another comes, is sampled under
its pod's name, and goes.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tripod.cadvisor.v1 import stats_service_pb2 as pb
from tripod.cadvisor.v1 import stats_service_pb2_grpc as pb_grpc
from tripod.cri.v1 import api_pb2 as cri

from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel
from tests.fakes.cri_server import FakeCri, cri_server
from tests.matrix.process import Failure, Service, enumerate_instants, until

CGROUPS = Path("/sys/fs/cgroup")
_TRIES = 800
CONTROLLERS = ("memory", "cpuacct", "pids", "blkio", "cpu")
# Of the process itself, and of each of the host's cgroups that it reads, of which others may make many.
OWN_FILES_CAP, CGROUP_FILES_CAP = 40, 24
_NETWORK = re.compile(r"/proc/\d+/net/dev( \(deleted\))?")


class Cgroup:
    """A container's cgroup with a process that uses some CPU, in every hierarchy that is mounted."""

    def __init__(self, parent: str) -> None:
        self.id = secrets.token_hex(32)
        roots = [CGROUPS / name for name in CONTROLLERS if (CGROUPS / name / "cgroup.procs").exists()]
        self._places = [root / parent / self.id for root in roots or [CGROUPS]]
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Make it."""
        for place in self._places:
            place.mkdir(parents=True)
        words = ["sh", "-c", "while :; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; sleep 0.05; done"]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        for place in self._places:
            (place / "cgroup.procs").write_text(str(self._process.pid))

    def remove(self) -> None:
        """End the process and remove the cgroup."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for place in self._places:
            deadline = time.monotonic() + 5
            while place.exists() and time.monotonic() < deadline:
                with suppress(OSError):  # Busy until the last process is reaped.
                    place.rmdir()
            with suppress(OSError):  # The other container's is in there.
                place.parent.rmdir()


@dataclass
class World:
    """A cAdvisor, the names that it asks for, and cgroups."""

    names: FakeCri
    service: Service
    channel: Any
    parent: str
    usage: dict[str, int] = field(default_factory=dict)

    def name(self, container_id: str, pod: str) -> None:
        """Give a container a name at the CRI server."""
        box = cri.PodSandboxStatus(
            id=f"box-{pod}",
            metadata=cri.PodSandboxMetadata(name=pod, namespace="default", uid=f"uid-{pod}"),
            state=cri.SANDBOX_READY,
        )
        self.names.sandboxes[box.id] = box
        status = cri.ContainerStatus(
            id=container_id, metadata=cri.ContainerMetadata(name="app"), state=cri.CONTAINER_RUNNING
        )
        self.names.containers[container_id] = (status, box.id)

    async def sample(self) -> dict[str, pb.ContainerStats]:
        """Return the latest snapshot's containers by id; counters must never fall."""
        stub = pb_grpc.StatsServiceStub(self.channel)
        for _ in range(_TRIES):
            try:
                answer = await call(stub.ListStats, pb.ListStatsRequest(), deadline_seconds=5)
            except RemoteError:
                await self.service.revive()
                await asyncio.sleep(0.05)
                continue
            found = {stats.attributes.id: stats for stats in answer.snapshot.containers}
            self._check_counters(found)
            return found
        raise Failure(f"I2 convergence: cAdvisor does not answer: {self.service.tail()}")

    def _check_counters(self, found: dict[str, pb.ContainerStats]) -> None:
        for key, stats in found.items():
            now, before = stats.cpu.usage_core_nanoseconds, self.usage.get(key, 0)
            if now < before:
                raise Failure(f"I6 order: CPU usage of {key[:12]} fell from {before} to {now}")
            self.usage[key] = now

    async def sees(self, container_id: str, pod: str) -> None:
        """Wait until a container is sampled under its pod's name."""

        async def holds() -> bool:
            found = (await self.sample()).get(container_id)
            return found is not None and found.attributes.pod_name == pod

        await until(holds, f"{pod} is sampled")

    async def misses(self, container_id: str) -> None:
        """Wait until a container is not sampled any more."""

        async def holds() -> bool:
            return container_id not in await self.sample()

        await until(holds, "the removed cgroup is gone from the samples")


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Serve names for a block; cAdvisor is ended with it."""
    folder.mkdir(parents=True)
    names = FakeCri()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = cri_server(names, folder / "fake.sock")
    await server.start()
    environment = {
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_CRI_ADDRESS": f"unix://{folder}/fake.sock",
    }
    service = Service("cadvisor", folder, environment)
    channel = open_channel(f"unix://{folder}/run/cadvisor.sock")
    try:
        yield World(names, service, channel, f"matrix-{secrets.token_hex(4)}")
    finally:
        await service.kill()
        await channel.close(None)
        await server.stop(0.1)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def tell(made: World, bystander: Cgroup) -> None:
    """Go through the story, and check the invariants."""
    await made.sees(bystander.id, "bystander")
    victim = Cgroup(made.parent)
    made.name(victim.id, "victim")
    await asyncio.to_thread(victim.make)
    try:
        await made.sees(victim.id, "victim")
    finally:
        await asyncio.to_thread(victim.remove)
    await made.misses(victim.id)
    await made.sees(bystander.id, "bystander")
    files = await asyncio.to_thread(_open_files, made.service.pid)
    _judge_files(files)
    stale = [path for path in files if victim.id in path]
    if stale:
        raise Failure(f"I4 no leak: files of a removed cgroup stay open: {stale}")
    await made.service.terminate()


def _open_files(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(path.readlink()))
    return found


def _judge_files(files: list[str]) -> None:
    """Check what is open: a few files of its own, and so many for each cgroup, whoever else runs here."""
    below = [path for path in files if path.startswith(f"{CGROUPS}/")]
    # The same cgroup is in several hierarchies.
    counts = Counter(Path(path).parent.name for path in below)
    name, most = max(counts.items(), key=lambda item: item[1], default=("", 0))
    # One for each container, which is a cgroup; proc calls some deleted whose process lives.
    networks = [path for path in files if _NETWORK.fullmatch(path)]
    if len(networks) > min(len(counts), len(set(networks))):
        raise Failure(f"I7 bounded: {sorted(networks)} of {len(counts)} cgroups")
    own = len(files) - len(below) - len(networks)
    if own > OWN_FILES_CAP or most > CGROUP_FILES_CAP:
        others = sorted(set(files) - set(below) - set(networks))
        raise Failure(f"I7 bounded: {own} open files, and {most} of {name}: {others}")


class CadvisorMatrix:
    """The instants of cAdvisor's story."""

    name = "cadvisor"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def _story(self, name: str, failpoints: str) -> bool:
        async with world(self._folder / name) as made:
            bystander = Cgroup(made.parent)
            made.name(bystander.id, "bystander")
            await asyncio.to_thread(bystander.make)
            try:
                await made.service.start(failpoints)
                await tell(made, bystander)
            finally:
                await asyncio.to_thread(bystander.remove)
            return made.service.killed_itself

    async def instants(self) -> list[tuple[str, int]]:
        """Go through the story once without kills."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "instants.log"
        await self._story("list", f"*=log({log})")
        return enumerate_instants(log.read_text().split(), 2)

    async def run(self, instant: str, occurrence: int) -> bool:
        """Kill at one instant."""
        off = f"{occurrence - 1}*off->" if occurrence > 1 else ""
        return await self._story(f"{instant}-{occurrence}", f"{instant}={off}1*kill->off")
