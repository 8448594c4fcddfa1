"""Kill the CRI server alone at every instant of its calls, on a real engine; the client asks again.

One bystander runs through all the kills. The story, as a kubelet would ask: an image is pulled, a sandbox
with a host port is run, a container is created, started, looked into, stopped and removed, a second one runs
when its sandbox is stopped and removed, and the image is removed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.grpcclient import call, open_channel
from tests.lab.dockerd import TEST_IMAGE, PrivateEngine, private_engine
from tests.lab.kubelet_client import KubeletClient
from tests.lab.node import network_namespace
from tests.lab.registry import Registry, registry
from tests.matrix.process import Failure, Service, until
from tests.matrix.staged import StagedMatrix

STEPS = ("cri.", "network.")
HOST_PORT = 18_080
MOST_FILES = 100
_OWNER = "io.tripod.node"
_DEADLINE_SECONDS = 30.0


@dataclass
class Stage:
    """A server in a network namespace, with its bystander, for one instant after another."""

    client: KubeletClient
    engine: PrivateEngine
    images: Registry
    folder: Path
    netns: str
    name: str
    bystander: str = ""

    async def ask(self, service: str, method: str, request: Any) -> Any:
        """Call until it is answered; a server that was killed is started again."""
        stub: Any = getattr(pb_grpc, f"{service}Stub")(self.client.channel)
        made = getattr(stub, method)
        return await self.client.ask(lambda: call(made, request, deadline_seconds=_DEADLINE_SECONDS))

    async def runtime(self, method: str, request: Any) -> Any:
        """Call the runtime's part."""
        return await self.ask("RuntimeService", method, request)

    async def docker(self, *words: str) -> str:
        """Run the `docker` program against the engine."""
        done = await asyncio.to_thread(self.engine.docker, *words)
        return done.stdout.decode().strip()

    async def lives(self) -> str:
        """Return ids and start times of what this node's engine runs and has."""
        listed = await self.docker("ps", "-aq", "--no-trunc", "--filter", f"label={_OWNER}={self.name}")
        if not listed:
            return ""
        form = "{{.Id}} {{.State.Status}} {{.State.StartedAt}} {{.State.Pid}}"
        return "\n".join(
            sorted((await self.docker("inspect", "--format", form, *listed.split())).split("\n"))
        )

    def sandbox(self, name: str, ports: tuple[int, ...] = ()) -> pb.PodSandboxConfig:
        """Describe a sandbox."""
        return pb.PodSandboxConfig(
            # A pod is on one node: two stages share an engine, and names are made of this.
            metadata=pb.PodSandboxMetadata(name=name, namespace="default", uid=f"{name}-of-{self.name}"),
            hostname=name,
            log_directory=str(self.folder / "logs" / name),
            port_mappings=[pb.PortMapping(container_port=8080, host_port=port) for port in ports],
        )

    async def started(self, box: str, sandbox: pb.PodSandboxConfig, name: str, image: str) -> str:
        """Create and start a container that sleeps; returns its id."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=["/bin/busybox", "sleep", "1000000"],
            log_path=f"{name}/0.log",
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=box, config=config, sandbox_config=sandbox)
        made = str((await self.runtime("CreateContainer", request)).container_id)
        await self.runtime("StartContainer", pb.StartContainerRequest(container_id=made))
        return made


@asynccontextmanager
async def stage(engine: PrivateEngine, images: Registry, name: str) -> AsyncIterator[Stage]:
    """Run a bystander under a server of its own for a block; the server does not run."""
    folder = Path(f"/tmp/mc-{engine.pid}-{name}")
    async with network_namespace() as netns:
        folder.mkdir(parents=True)
        settings = {
            "TRIPOD_SOCKET": str(folder / "cri.sock"),
            "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
            "TRIPOD_DOCKER_HOST": engine.host,
            "TRIPOD_NODE_NAME": name,
            "TRIPOD_BRIDGE": "mcri0",
            "TRIPOD_POD_CIDR": "10.205.0.0/24",
        }
        service = Service(
            "kubelet.cri", folder, settings, prefix=("nsenter", f"--net=/run/netns/{netns}", "--")
        )
        channel = open_channel(f"unix://{folder}/cri.sock")
        made = Stage(KubeletClient(service=service, channel=channel), engine, images, folder, netns, name)
        try:
            await service.start()
            sandbox = made.sandbox("bystander")
            box = (
                await made.runtime("RunPodSandbox", pb.RunPodSandboxRequest(config=sandbox))
            ).pod_sandbox_id
            await made.started(box, sandbox, "app", TEST_IMAGE)
            made.bystander = await made.lives()
            await service.terminate()
            yield made
        finally:
            await service.kill()
            await channel.close(None)
            left = await made.docker("ps", "-aq", "--filter", f"label={_OWNER}={name}")
            if left:
                await made.docker("rm", "-fv", *left.split())
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def tell(made: Stage) -> None:
    """Go through the story."""
    image = pb.ImageSpec(image=made.images.name("tiny", made.name))
    await made.ask("ImageService", "PullImage", pb.PullImageRequest(image=image))
    sandbox = made.sandbox("victim", (HOST_PORT,))
    box = (await made.runtime("RunPodSandbox", pb.RunPodSandboxRequest(config=sandbox))).pod_sandbox_id
    app = await made.started(box, sandbox, "app", image.image)
    looked = await made.runtime(
        "ExecSync", pb.ExecSyncRequest(container_id=app, cmd=["/bin/busybox", "true"])
    )
    if looked.exit_code != 0:
        raise Failure(f"I2 convergence: the container's command ended with {looked.exit_code}")
    await made.runtime("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=app))
    await made.runtime("StopContainer", pb.StopContainerRequest(container_id=app, timeout=0))
    await made.runtime("RemoveContainer", pb.RemoveContainerRequest(container_id=app))
    await made.started(box, sandbox, "side", image.image)
    await _alone(made, box)
    await made.runtime("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=box))
    await made.runtime("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=box))
    await made.ask("ImageService", "RemoveImage", pb.RemoveImageRequest(image=image))


async def _alone(made: Stage, box: str) -> None:
    """See that there is one sandbox of the pod with one container: nothing was made twice."""
    wanted = pb.ContainerFilter(pod_sandbox_id=box)
    listed = await made.runtime("ListContainers", pb.ListContainersRequest(filter=wanted))
    boxes = await made.runtime("ListPodSandbox", pb.ListPodSandboxRequest())
    names = sorted(item.metadata.name for item in boxes.items)
    if [c.metadata.name for c in listed.containers] != ["side"] or names != ["bystander", "victim"]:
        raise Failure(f"I3 at most one: containers {listed.containers}, sandboxes {names}")


async def judge(made: Stage) -> None:
    """Check what must hold after the story. Raises `Failure` with the first that does not."""
    found = ""

    async def clean() -> bool:
        nonlocal found
        status = await made.runtime("Status", pb.StatusRequest(verbose=True))
        ledger = json.loads(status.info["tripod.io/ledger"])
        one = {kind: len(ledger[kind]) for kind in ("containers", "sandboxes", "leases", "links")}
        ours = {item["id"] for kind in ("containers", "sandboxes") for item in ledger[kind]}
        strange = [name for name in ledger["files"] if name.split("/")[-1] not in ours]
        found = f"{one}, files {strange}"
        return set(one.values()) == {1} and not strange

    try:
        await until(clean, "the ledger holds the bystander alone")
    except Failure as failure:
        raise Failure(f"I4 no leak: {found}") from failure
    now = await made.lives()
    if now != made.bystander:
        raise Failure(f"I1 continuity: the engine had {made.bystander}, has {now}")
    rules = await asyncio.to_thread(_rules, made.netns)
    if str(HOST_PORT) in rules:
        raise Failure(f"I4 no leak: rules of the host port: {rules}")
    if await made.docker("images", "-q", made.images.name("tiny", made.name)):
        raise Failure("I4 no leak: the image is there")
    files = len(list(Path(f"/proc/{made.client.service.pid}/fd").iterdir()))  # of /proc
    if files > MOST_FILES:
        raise Failure(f"I7 bounded: {files} open files")
    took = await made.client.service.terminate()
    if took > 8.0:
        raise Failure(f"SIGTERM took {took:.1f} s")


def _rules(netns: str) -> str:
    """Return the firewall's rules in a namespace, of every kind."""
    text = ""
    for words in (["iptables-save"], ["iptables-legacy-save"], ["nft", "list", "ruleset"]):
        if shutil.which(words[0]):
            command = ["nsenter", f"--net=/run/netns/{netns}", "--", *words]
            text += subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return text


class CriMatrix(StagedMatrix[Stage]):
    """The instants of the story on an engine that lives as long as the context."""

    name = "cri"
    steps = STEPS
    _engine: PrivateEngine
    _images: Registry
    _program: bytes

    async def __aenter__(self) -> CriMatrix:
        """Start the engine and a registry. Raises `EngineUnavailable`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._engine = await asyncio.to_thread(self._stack.enter_context, private_engine())
        self._images = self._stack.enter_context(registry())
        self._program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()  # once
        return self

    def _stage(self, name: str) -> AbstractAsyncContextManager[Stage]:
        # Each of its own content: an image goes with all its names.
        content = {"bin": None, "bin/busybox": self._program, "name": name.encode()}
        self._images.add("tiny", name, layers=[content])
        return stage(self._engine, self._images, name)

    def _service(self, stage: Stage) -> Service:
        return stage.client.service

    async def _perform(self, stage: Stage, since: float) -> None:
        await tell(stage)
        await judge(stage)
