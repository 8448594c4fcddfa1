"""The CRI server as a process of its own, on a real engine: called over its socket, killed, started again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel, stream
from services.kubelet.cri import convert, naming
from services.kubelet.cri.app import cleanup, network_config
from services.kubelet.cri.config import CriConfig
from services.kubelet.cri.network.bridge import BridgeNetwork
from tests.waiting import until_told

pytestmark = [pytest.mark.docker, pytest.mark.asyncio]
LIMIT_SECONDS = 30


class Server:
    """The process, and a client of it."""

    def __init__(self, folder: Path, docker_host: str = "") -> None:
        mark = uuid.uuid4().hex[:5]
        self.folder = folder
        self.config = CriConfig(
            socket=folder / "cri.sock",
            state_directory=folder / "cri",
            node_name=f"tt-{mark}",
            bridge=f"tt{mark}",
            pod_cidr=f"10.{64 + int(mark[:2], 16) % 60}.{int(mark[2:4], 16)}.0/24",
            chain_prefix=f"TT{mark.upper()}",
            veth_prefix=f"t{mark[:3]}",
            docker_host=docker_host or CriConfig().docker_host,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._channel = open_channel(f"unix://{self.config.socket}")
        self.runtime = pb_grpc.RuntimeServiceStub(self._channel)
        self.images = pb_grpc.ImageServiceStub(self._channel)

    async def start(self) -> None:
        """Start the process and wait until it answers."""
        config = self.config
        words = ["--socket", config.socket, "--state-directory", config.state_directory]
        words += ["--docker-host", config.docker_host]
        words += ["--node-name", config.node_name, "--bridge", config.bridge, "--pod-cidr", config.pod_cidr]
        words += ["--chain-prefix", config.chain_prefix, "--veth-prefix", config.veth_prefix]
        with (self.folder / "server.log").open("ab") as output:
            self._process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-m", "services.kubelet.cri", *map(str, words)],
                stdout=output,
                stderr=output,
            )
        await self.until(lambda: self._answers())

    async def _answers(self) -> bool:
        try:
            status = await call(self.runtime.Status, pb.StatusRequest(), deadline_seconds=5)
        except RemoteError:
            return False
        return all(condition.status for condition in status.status.conditions)

    async def until(self, holds: Any) -> None:
        """Wait for a condition, with a limit."""
        await until_told(holds, LIMIT_SECONDS)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """Kill the process."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def close(self) -> None:
        """Kill the process and remove everything."""
        await self._channel.close(None)
        await self.kill()
        await cleanup(self.config)

    async def ask(self, method: Any, request: Any) -> Any:
        """Call."""
        return await call(method, request, deadline_seconds=60)

    def sandbox_config(self, name: str = "web", attempt: int = 0) -> pb.PodSandboxConfig:
        """Describe a sandbox."""
        meta = pb.PodSandboxMetadata(name=name, namespace="default", uid=f"uid-{name}", attempt=attempt)
        labels = {"app": name}
        return pb.PodSandboxConfig(
            metadata=meta, hostname=name, log_directory=str(self.folder / "logs" / name), labels=labels
        )

    async def sandbox(self, name: str = "web") -> str:
        """Run a sandbox."""
        request = pb.RunPodSandboxRequest(config=self.sandbox_config(name))
        return str((await self.ask(self.runtime.RunPodSandbox, request)).pod_sandbox_id)

    async def container(self, sandbox: str, image: str, program: str, name: str = "app", **more: Any) -> str:
        """Create and start a container that runs a Python program."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=["python3", "-u", "-c", program],
            log_path=f"{name}/0.log",
            **more,
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=config)
        made = (await self.ask(self.runtime.CreateContainer, request)).container_id
        await self.ask(self.runtime.StartContainer, pb.StartContainerRequest(container_id=made))
        return str(made)

    async def status(self, container: str) -> pb.ContainerStatus:
        """Return a container's status."""
        request = pb.ContainerStatusRequest(container_id=container)
        answer = await self.ask(self.runtime.ContainerStatus, request)
        status: pb.ContainerStatus = answer.status
        return status

    async def ended(self, container: str) -> pb.ContainerStatus:
        """Wait for a container's end."""

        async def has_ended() -> bool:
            return (await self.status(container)).state == pb.CONTAINER_EXITED

        await self.until(has_ended)
        return await self.status(container)

    def log(self, pod: str = "web", name: str = "app") -> list[tuple[str, str]]:
        """Read a log file: stream and line."""
        path = self.folder / "logs" / pod / name / "0.log"
        if not path.exists():
            return []
        entries = [line.split(" ", 3) for line in path.read_text().splitlines()]
        return [(entry[1], entry[3]) for entry in entries]


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Run a server with names of its own."""
    made = Server(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


FOREVER = "import os, signal; signal.signal(15, lambda *_: os._exit(143)); signal.pause()"


async def test_a_sandbox_under_another_name_is_found_again(server: Server) -> None:
    """A foreign container had its name at first, and has gone when a killed server is asked again."""
    name = naming.sandbox_name(convert.sandbox_record(server.sandbox_config("web")))
    docker = ["docker", "create", "--name", name, "tripod-pause:1"]
    await asyncio.to_thread(subprocess.run, docker, check=True, capture_output=True)
    try:
        first = await server.sandbox()
    finally:
        await asyncio.to_thread(subprocess.run, ["docker", "rm", "-f", name], check=True, capture_output=True)
    await server.kill()
    await server.start()
    again = await server.sandbox()
    listed = await server.ask(server.runtime.ListPodSandbox, pb.ListPodSandboxRequest())

    assert again == first
    assert [item.id for item in listed.items] == [first]


async def test_a_pod_lives_from_sandbox_to_nothing(server: Server, image: str) -> None:
    """Each call of the CRI, and each of those that end something twice."""
    box = await server.sandbox()
    status = await server.ask(server.runtime.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id=box))
    app = await server.container(box, image, FOREVER)
    listed = await server.ask(
        server.runtime.ListContainers,
        pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=box)),
    )
    for _ in range(2):
        await server.ask(server.runtime.StopContainer, pb.StopContainerRequest(container_id=app, timeout=5))
    stopped = await server.status(app)
    for _ in range(2):
        await server.ask(server.runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=app))
        await server.ask(server.runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=box))
    for _ in range(2):
        await server.ask(server.runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=box))
    left = await server.ask(server.runtime.ListPodSandbox, pb.ListPodSandboxRequest())

    assert status.status.state == pb.SANDBOX_READY
    assert status.status.network.ip.startswith("10.")
    assert dict(status.status.labels) == {"app": "web"}
    assert [item.id for item in listed.containers] == [app]
    # SIGTERM found it: 128 + 15.
    assert (stopped.state, stopped.exit_code) == (pb.CONTAINER_EXITED, 143)
    assert list(left.items) == []


@pytest.mark.parametrize(
    ("program", "code", "reason"), [("pass", 0, "Completed"), ("raise SystemExit(3)", 3, "Error")]
)
async def test_an_end_has_its_code_and_reason(
    server: Server, image: str, program: str, code: int, reason: str
) -> None:
    """What the kubelet's restart policy needs."""
    app = await server.container(await server.sandbox(), image, program)

    status = await server.ended(app)

    assert (status.exit_code, status.reason) == (code, reason)
    assert status.finished_at >= status.started_at > 0


async def test_a_log_is_whole_although_the_server_is_killed(server: Server, image: str) -> None:
    """Lines written before, while and after the server was away: each once, in order."""
    program = "import sys, time\nfor i in range(300): print(i); print(-i, file=sys.stderr); time.sleep(0.01)"
    app = await server.container(await server.sandbox(), image, program)

    async def some_lines() -> bool:
        return len(server.log()) > 40

    await server.until(some_lines)
    await server.kill()
    await server.start()
    await server.ended(app)

    async def all_lines() -> bool:
        return len(server.log()) >= 600

    await server.until(all_lines)
    log = server.log()
    assert [line for kind, line in log if kind == "stdout"] == [str(i) for i in range(300)]
    assert [line for kind, line in log if kind == "stderr"] == [str(-i) for i in range(300)]


async def test_a_killed_server_finds_everything_again(server: Server, image: str) -> None:
    """Containers live on under the same ids, and the pod keeps its address."""
    box = await server.sandbox()
    app = await server.container(box, image, FOREVER)
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=box)
    before = (await server.ask(server.runtime.PodSandboxStatus, request)).status
    pid = (await server.status(app)).started_at

    await server.kill()
    await server.start()

    after = (await server.ask(server.runtime.PodSandboxStatus, request)).status
    assert after == before
    assert ((await server.status(app)).state, (await server.status(app)).started_at) == (
        pb.CONTAINER_RUNNING,
        pid,
    )


async def test_a_log_that_was_moved_away_is_opened_anew(server: Server, image: str) -> None:
    """Rotation: the old file keeps what it has, the new one goes on."""
    program = "import time\nfor i in range(10**6): print(i); time.sleep(0.01)"
    app = await server.container(await server.sandbox(), image, program)
    path = server.folder / "logs/web/app/0.log"

    async def some_lines() -> bool:
        return len(server.log()) > 5

    await server.until(some_lines)
    moved = path.with_suffix(".1")
    await asyncio.to_thread(path.rename, moved)
    await server.ask(server.runtime.ReopenContainerLog, pb.ReopenContainerLogRequest(container_id=app))
    await server.until(some_lines)

    first = [int(line.rsplit(" ", 1)[1]) for line in moved.read_text().splitlines()]  # small
    second = [int(line) for _, line in server.log()]
    assert first + second == list(range(len(first) + len(second)))


async def test_a_command_runs_with_its_code_and_its_limit(server: Server, image: str) -> None:
    """ExecSync: outputs, exit code, and a time-out that is told."""
    app = await server.container(await server.sandbox(), image, FOREVER)
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    request = pb.ExecSyncRequest(container_id=app, cmd=["python3", "-c", program], timeout=10)

    answer = await server.ask(server.runtime.ExecSync, request)
    endless = ["python3", "-c", "import signal; signal.pause()"]
    slow = pb.ExecSyncRequest(container_id=app, cmd=endless, timeout=1)
    with pytest.raises(RemoteError) as caught:
        await server.ask(server.runtime.ExecSync, slow)

    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 7)
    assert caught.value.reason == "EXEC_TIMEOUT"


async def test_limits_reach_the_kernel(server: Server, image: str) -> None:
    """As the container's own cgroup shows them to the engine."""
    config = pb.LinuxContainerConfig()
    config.resources.memory_limit_in_bytes = 64 << 20
    config.resources.cpu_quota = 50_000
    config.resources.cpu_period = 100_000
    config.resources.oom_score_adj = 500
    app = await server.container(await server.sandbox(), image, FOREVER, linux=config)

    form = "{{.HostConfig.Memory}} {{.HostConfig.CpuQuota}} {{.HostConfig.OomScoreAdj}}"
    words = ["docker", "inspect", "--format", form, app]
    told = await asyncio.to_thread(subprocess.check_output, words, text=True)

    assert told.split() == [str(64 << 20), "50000", "500"]


async def test_two_pods_reach_each_other(server: Server, image: str) -> None:
    """Over the bridge, although the engine's firewall drops what it does not know."""
    first, second = await server.sandbox("a"), await server.sandbox("b")
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=first)
    address = (await server.ask(server.runtime.PodSandboxStatus, request)).status.network.ip
    serve = (
        "import socket; s = socket.create_server(('', 80)); print('ready')\n"
        "while True: s.accept()[0].sendall(b'hi')"
    )
    await server.container(first, image, serve)

    async def ready() -> bool:
        return ("stdout", "ready") in server.log("a")

    await server.until(ready)
    ask = f"import socket; print(socket.create_connection(('{address}', 80), timeout=5).recv(9))"
    client = await server.container(second, image, ask)

    assert (await server.ended(client)).exit_code == 0


async def test_events_tell_what_happens(server: Server, image: str) -> None:
    """A kubelet needs no polling."""
    box = await server.sandbox()
    kinds: list[int] = []
    async with stream(server.runtime.GetContainerEvents, pb.GetEventsRequest()) as events:

        async def read() -> None:
            async for event in events:
                assert event.pod_sandbox_status.metadata.uid == "uid-web"
                kinds.append(event.container_event_type)
                if pb.CONTAINER_STOPPED_EVENT in kinds:
                    return

        async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as group:
            reader = group.create_task(read())
            while not reader.done():
                app = await server.container(box, image, "pass")
                await server.ended(app)
                await server.ask(server.runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=app))

    assert pb.CONTAINER_STARTED_EVENT in kinds


async def test_what_is_not_there_is_not_found(server: Server) -> None:
    """And an image that cannot be had is explained."""
    with pytest.raises(RemoteError) as absent:
        await server.status("f" * 64)
    name = pb.ImageSpec(image="registry.invalid/nothing:1")
    with pytest.raises(RemoteError) as unpulled:
        await server.ask(server.images.PullImage, pb.PullImageRequest(image=name))
    image = await server.ask(server.images.ImageStatus, pb.ImageStatusRequest(image=name))

    assert absent.value.reason == "CONTAINER_NOT_FOUND"
    assert unpulled.value.reason == "REGISTRY_UNREACHABLE"
    assert not image.HasField("image")


async def test_a_sandbox_without_its_network_is_not_ready(server: Server) -> None:
    """A start that was killed between the pause container and its network is made anew by the kubelet."""
    box = await server.sandbox()
    await server.kill()
    network = BridgeNetwork(network_config(server.config))
    await network.start()
    await network.detach(box)
    await network.stop()
    await server.start()
    listed = await server.ask(server.runtime.ListPodSandbox, pb.ListPodSandboxRequest())

    assert [(item.id, item.state) for item in listed.items] == [(box, pb.SANDBOX_NOTREADY)]
