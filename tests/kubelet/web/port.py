"""The secure port in the test's own process: real TLS, a runtime of values, real streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from services.common.clock import Clock, SystemClock
from services.common.watch import WatchHub
from services.kubelet.config import KubeletConfig
from services.kubelet.core.access import User
from services.kubelet.core.model import ContainerId, Pod, PodUid, SandboxId
from services.kubelet.core.status import PodStatus
from services.kubelet.core.stream_options import Streams
from services.kubelet.cri.streaming.server import HttpStreamingServer
from services.kubelet.cri.streaming.session import ForwardRequest, StreamRequest
from services.kubelet.web.pages import Pages
from services.kubelet.web.port import Node, secure_port
from services.kubelet.web.traffic import Traffic
from tests.builders import a_container, a_pod
from tests.fakes.reviewer import FakeReviewer
from tests.fakes.runtime import FakeRuntime
from tests.kubelet.cri.streaming.fake_backend import PROGRAMS, FakeBackend, FakePorts
from tests.lab.tls import Authority, any_server

NODE = "node-1"
TOKEN = "good-token-of-an-account"
METRICS = User("system:serviceaccount:kube-system:metrics", ("system:serviceaccounts",), "uid-9")


class StreamingRuntime(FakeRuntime):
    """A runtime of values whose URLs are those of a real streaming server."""

    def __init__(self, server: HttpStreamingServer) -> None:
        super().__init__(present=["app:1"])
        self.server = server
        self.base_url = server.base_url
        self.asked: list[Any] = []

    def _there(self, url: str) -> str:
        """Lead a URL of the server to whoever stands before it."""
        return url.replace(self.server.base_url, self.base_url)

    async def exec_url(self, container: ContainerId, command: Sequence[str], streams: Streams) -> str:
        """Return a URL of the server."""
        self.asked.append(streams)
        return self._there(self.server.exec_url(_request("box", streams, command)))

    async def attach_url(self, container: ContainerId, streams: Streams) -> str:
        """Return a URL that attaches to the program `cat`."""
        self.asked.append(streams)
        return self._there(self.server.attach_url(_request("cat", streams)))

    async def port_forward_url(self, sandbox: SandboxId, ports: Sequence[int]) -> str:
        """Return a URL of the server."""
        self.asked.append(tuple(ports))
        return self._there(self.server.forward_url(ForwardRequest("box", tuple(ports))))


def _request(container: str, streams: Streams, command: Sequence[str] = ()) -> StreamRequest:
    return StreamRequest(
        container_id=container,
        command=tuple(command),
        tty=streams.tty,
        stdin=streams.stdin,
        stdout=streams.stdout,
        stderr=streams.stderr,
    )


class Pods:
    """A source of pods that do not change."""

    def __init__(self, *pods: Pod) -> None:
        self._pods = pods

    def pods(self) -> Sequence[Pod]:
        """Return all."""
        return self._pods

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one."""
        return next((pod for pod in self._pods if pod.uid == uid), None)

    def take_new(self, uid: PodUid) -> bool:
        """Tell of none."""
        return False

    async def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield nothing."""
        for pod in self._pods:
            yield pod.uid, ""

    async def finalize(self, uid: PodUid) -> None:
        """Keep it."""


@dataclass
class Port:
    """The port, and what is behind it."""

    number: int
    runtime: StreamingRuntime
    backend: FakeBackend
    reviewer: FakeReviewer
    authority: Authority
    statuses: WatchHub[PodStatus]
    log_root: Path
    state: Path
    pod: Pod
    source: Pods
    admin: ssl.SSLContext
    extra: dict[str, Any] = field(default_factory=dict)

    def url(self, path: str) -> str:
        """Return a URL of the port."""
        return f"https://127.0.0.1:{self.number}{path}"

    @asynccontextmanager
    async def session(self, context: ssl.SSLContext | None = None) -> AsyncIterator[aiohttp.ClientSession]:
        """Make a client, the administrator unless another is given."""
        connector = aiohttp.TCPConnector(ssl=context or self.admin)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield session

    async def get(
        self, path: str, context: ssl.SSLContext | None = None, /, *, method: str = "GET", **headers: str
    ) -> tuple[int, str]:
        """Ask once; returns the status and the text."""
        async with self.session(context or any_server()) as session:
            async with session.request(method, self.url(path), headers=headers) as answer:
                return answer.status, await answer.text()


ADMIN = "kube-apiserver-kubelet-client"
EVERYTHING = {
    (ADMIN, verb, part)
    for verb in ("get", "create")
    for part in ("proxy", "stats", "metrics", "log", "checkpoint", "pods", "healthz", "configz")
}


@asynccontextmanager
async def secure(folder: Path, *, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Port]:
    """Serve the port for a block. The administrator may do everything; `METRICS` may read metrics."""
    clock = clock or SystemClock()
    backend = FakeBackend(PROGRAMS)
    streaming = HttpStreamingServer(backend, FakePorts())
    await streaming.start()
    runtime = StreamingRuntime(streaming)
    pod = a_pod(a_container(image="app:1", stdin=True), a_container(name="idle", image="app:1"))
    reviewer = FakeReviewer({TOKEN: METRICS}, {*EVERYTHING, (METRICS.name, "get", "metrics")})
    authority = await asyncio.to_thread(Authority, folder)
    config = replace(
        KubeletConfig(state_directory=folder / "state", client_ca_file=authority.path), **settings
    )
    statuses: WatchHub[PodStatus] = WatchHub("run")
    source = Pods(pod)
    node = Node(
        name=NODE,
        names=lambda: [NODE, "127.0.0.1"],
        source=source,
        runtime=runtime,
        statuses=statuses,
        log_root=folder / "logs",
        token="node-token-of-32-characters-at-least",
        reviewer=reviewer,
    )
    server = secure_port(config, node, pages(), Traffic(clock), clock, listen="127.0.0.1:0")
    await server.start()
    try:
        yield Port(
            number=server.port,
            runtime=runtime,
            backend=backend,
            reviewer=reviewer,
            authority=authority,
            statuses=statuses,
            log_root=folder / "logs",
            state=config.state_directory,
            pod=pod,
            source=source,
            admin=authority.issue(ADMIN, "system:masters").client(),
        )
    finally:
        await server.stop()
        await streaming.stop()


def held() -> tuple[int, int]:
    """Count this process's open files and this loop's tasks."""
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())


def pages() -> Pages:
    """Pages that say their names."""

    async def empty() -> list[dict[str, Any]]:
        return []

    async def summary(only: bool) -> dict[str, Any]:
        return {"only": only}

    async def metrics() -> bytes:
        return b"metric 1\n"

    return Pages(
        checks={"ping": lambda: None, "log": lambda: None, "syncloop": lambda: None},
        pods=list,
        running_pods=empty,
        summary=summary,
        configuration=lambda: {"kubeletconfig": {}},
        metrics={"/metrics": metrics, "/metrics/probes": metrics},
    )


async def start_pod(port: Port, *, log_path: str = "") -> ContainerId:
    """Run the pod's first container at the runtime of values."""
    from services.kubelet.core.resources import KernelResources
    from services.kubelet.ports import ContainerConfig, SandboxConfig

    made = SandboxConfig(port.pod, 0, hostname="web", log_directory="")
    box = await port.runtime.create_sandbox(made)
    config = ContainerConfig(
        pod=port.pod,
        sandbox=made,
        container=port.pod.spec.containers[0],
        attempt=0,
        command=(),
        args=(),
        environment={},
        mounts=(),
        resources=KernelResources(0, 0, 0, 0),
        log_path=log_path,
    )
    container = await port.runtime.create_container(box, config)
    await port.runtime.start_container(container)
    return container
