"""A node of a test's own: a private engine and a kubelet process, in a network namespace.

Nothing of it shows on the host but files below /tmp: the bridge and the firewall
rules lie in the namespace. Kill and restart what you like:

    async with node() as made:
        await made.apply(pod("web"))
        await made.ready("web")
        made.engine.kill()
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

from services.common.grpcclient import open_channel
from tests.lab.dockerd import TEST_IMAGE, PrivateEngine, private_engine
from tests.lab.kubelet_client import KubeletClient
from tests.matrix.process import Failure, Service

NODE_NAME = "lab"
BRIDGE = "lab0"
POD_CIDR = "10.203.0.0/24"
START_SECONDS = 60.0
_numbers = count()


@dataclass(kw_only=True)
class BareNode(KubeletClient):
    """A kubelet on any runtime in a network namespace, and a client of that kubelet."""

    folder: Path
    netns: str
    patience_seconds: float = 60.0

    @property
    def state(self) -> Path:
        """The kubelet's state directory."""
        return self.folder / "state"

    async def start(self, failpoints: str = "") -> None:
        """Start the kubelet and wait until it works."""
        await self.service.start(failpoints)

        async def works() -> bool:
            if self.service.dead:
                raise Failure(f"the kubelet ended: {self.service.tail()}")
            conditions = await self.conditions()
            return "Ready" in conditions

        await self.until(works, "the kubelet works", START_SECONDS)

    async def ip(self, *words: str) -> str:
        """Run the `ip` program in the node's network namespace."""
        command = ["ip", "-n", self.netns, *words]
        return await asyncio.to_thread(subprocess.check_output, command, text=True)

    async def phase(self, name: str, phase: pod_pb.PodPhase.ValueType) -> pod_pb.Pod:
        """Wait until a pod is in a phase."""
        found: list[pod_pb.Pod] = []

        async def holds() -> bool:
            found[:] = [pod for pod in (await self.pods()).values() if pod.name == name]
            return bool(found) and found[0].phase == phase

        await self.until(holds, f"{name} is {pod_pb.PodPhase.Name(phase)}")
        return found[0]

    async def waits(self, name: str, *reasons: str) -> pod_pb.Pod:
        """Wait until a pod's first container waits for one of these reasons."""
        found: list[pod_pb.Pod] = []

        async def holds() -> bool:
            found[:] = [pod for pod in (await self.pods()).values() if pod.name == name]
            return bool(found) and found[0].containers[0].state.reason in reasons

        await self.until(holds, f"{name} waits for {reasons}")
        return found[0]

    async def condition(self, kind: str, *, holds: bool, seconds: float = 30.0) -> str:
        """Wait until a condition of the node holds or not; return its message."""
        wanted = pod_pb.CONDITION_STATUS_TRUE if holds else pod_pb.CONDITION_STATUS_FALSE
        message: list[str] = []

        async def met() -> bool:
            found = (await self.conditions())[kind]
            message[:] = [found.message]
            return found.status == wanted

        await self.until(met, f"{kind} is {holds}", seconds)
        return message[0]

    async def delete_all(self) -> None:
        """Delete every pod and wait until nothing is left."""
        names = tuple(await self.pods())
        if names:
            await self.delete(*names)
            await self.gone(*names)
        await self.clean()


@dataclass(kw_only=True)
class Node(BareNode):
    """An engine, a kubelet on it, and a client of that kubelet."""

    engine: PrivateEngine

    async def docker(self, *words: str, check: bool = True, data: bytes | None = None) -> str:
        """Run the `docker` program against the engine; return what it prints."""
        done = await asyncio.to_thread(self.engine.docker, *words, check=check, data=data)
        return done.stdout.decode(errors="replace").strip()

    async def inspect(self, container: str, form: str) -> str:
        """Return a part of what the engine knows of a container, "" without it: a Go template."""
        return await self.docker("inspect", "--type", "container", "--format", form, container, check=False)

    async def snapshot(self) -> dict[str, Seen]:
        """Return what must not change of each pod's containers, by `POD/CONTAINER`."""
        seen = {}
        for name, found in (await self.pods()).items():
            for status in found.containers:
                started = await self.inspect(status.container_id, "{{.State.StartedAt}} {{.State.Pid}}")
                seen[f"{name}/{status.name}"] = Seen(
                    container_id=status.container_id,
                    started=started,
                    restart_count=status.restart_count,
                    addresses=tuple(found.pod_ips),
                )
        return seen

    async def container_id(self, name: str) -> str:
        """Return the id of a pod's first container."""
        return str((await self.pods())[name].containers[0].container_id)

    async def sandbox_id(self, name: str, state: str = "running") -> str:
        """Return the id of a pod's pause container; "" without one."""
        filters = ("label=io.tripod.kind=podsandbox", f"label=io.kubernetes.pod.name={name}")
        words = [word for entry in (*filters, f"status={state}") for word in ("--filter", entry)]
        return await self.docker("ps", "-aq", "--no-trunc", *words)


@dataclass(frozen=True, slots=True)
class Seen:
    """What must not change of a container that nobody touched. `started` has its process id, too."""

    container_id: str
    started: str
    restart_count: int
    addresses: tuple[str, ...]


def pod(
    name: str,
    *command: str,
    image: str = TEST_IMAGE,
    policy: str = "Always",
    grace_seconds: int = 1,
    container: Mapping[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Write a pod of one container `app` that sleeps for ever, or runs `command`.

    `container` and `spec` add to the container and the spec, or replace.
    """
    words = list(command) or ["sleep", "1000000"]
    made = {"name": "app", "image": image, "imagePullPolicy": "Never", "command": words}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": policy,
            "terminationGracePeriodSeconds": grace_seconds,
            "containers": [{**made, **(container or {})}],
            **spec,
        },
    }


@asynccontextmanager
async def node(
    *,
    live_restore: bool = True,
    data_root: Path | None = None,
    docker_host: str = "",
    settings: Mapping[str, str] | None = None,
    start: bool = True,
) -> AsyncIterator[Node]:
    """Run a node for a block; everything of it goes at the end.

    `docker_host` is where the kubelet finds the engine, when a proxy stands before it.
    `settings` are more of the kubelet's. Raises `EngineUnavailable`.
    """
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(private_engine(live_restore=live_restore, data_root=data_root))
        made = await stack.enter_async_context(kubelet_on(engine, docker_host, settings))
        if start:
            await made.start()
        yield made


@asynccontextmanager
async def kubelet_on(
    engine: PrivateEngine, docker_host: str = "", settings: Mapping[str, str] | None = None
) -> AsyncIterator[Node]:
    """Make a kubelet process for an engine, not started yet; its pods end with the engine."""
    async with network_namespace() as netns, kubelet_in(netns, docker_host or engine.host, settings) as made:
        yield Node(service=made.service, channel=made.channel, folder=made.folder, netns=netns, engine=engine)


@asynccontextmanager
async def network_namespace() -> AsyncIterator[str]:
    """Make a network namespace for a block; yields its name."""
    name = f"tn-{time.monotonic_ns() // 1000 % 10**8:x}{next(_numbers)}"
    await _ip("netns", "add", name)
    try:
        await _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        await _ip("netns", "delete", name)


@asynccontextmanager
async def kubelet_in(
    netns: str, docker_host: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[BareNode]:
    """Make a kubelet process in a network namespace, not started yet."""
    folder = Path(f"/tmp/{netns}")
    (folder / "run").mkdir(parents=True)
    environment = {
        "TRIPOD_NODE_NAME": NODE_NAME,
        "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_DOCKER_HOST": docker_host,
        "TRIPOD_BRIDGE": BRIDGE,
        "TRIPOD_POD_CIDR": POD_CIDR,
        **(settings or {}),
    }
    service = Service("kubelet", folder, environment, prefix=("nsenter", f"--net=/run/netns/{netns}", "--"))
    channel = open_channel(f"unix://{folder}/run/kubelet.sock")
    try:
        yield BareNode(service=service, channel=channel, folder=folder, netns=netns)
    finally:
        await service.kill()
        await channel.close(None)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _ip(*words: str) -> None:
    await asyncio.to_thread(subprocess.run, ["ip", *words], check=True, capture_output=True)
