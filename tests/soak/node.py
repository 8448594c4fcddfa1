"""A whole node of real processes, shut in: an engine and a network namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.proxy.v1 import proxy_service_pb2 as proxy_pb
from tripod.proxy.v1 import proxy_service_pb2_grpc as proxy_grpc

from services.cadvisor.config import CadvisorConfig
from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel
from services.kubelet.config import KubeletConfig
from services.proxy.config import ProxyConfig
from tests.lab import node as lab
from tests.lab.dockerd import private_engine
from tests.matrix.process import Failure, Service, until

T = TypeVar("T")
CONFIGS: dict[str, Any] = {"kubelet": KubeletConfig, "proxy": ProxyConfig, "cadvisor": CadvisorConfig}
NODE_NAME = "soak"
_PATIENCE = 5
CGROUPS = "/sys/fs/cgroup/"


@dataclass(frozen=True, slots=True)
class Held:
    """What one process holds; `tasks` is -1 where nobody could be asked."""

    open_files: int
    threads: int
    tasks: int
    resident_bytes: int
    # How many open files of each kind: "socket", "pipe", or a path.
    kinds: Mapping[str, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Node(lab.Node):
    """The node, and a client of each service. What fails leaves its logs in `kept`."""

    services: dict[str, Service]
    proxy_channel: Any
    kept: Path
    engine_turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, method: Callable[[], Awaitable[T]]) -> T:
        """Call until it is answered; one that is killed every few seconds needs some patience."""
        for _ in range(_PATIENCE):
            try:
                return await super().ask(method)
            except Failure as failure:
                if "does not answer" not in str(failure):
                    raise
        return await super().ask(method)

    async def ask_engine(self, *words: str, seconds: float = 60) -> tuple[int, str]:
        """Run the `docker` program against an engine that may be away: its exit code and output."""
        done = await asyncio.to_thread(self.engine.docker, *words, check=False, timeout=seconds)
        return done.returncode, done.stdout.decode()

    async def run(self, *words: str) -> str:
        """Run a program in the node's network namespace; one that fails has an empty output."""
        command = ["nsenter", f"--net=/run/netns/{self.netns}", *words]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        return str(done.stdout)

    async def delete_service(self, name: str) -> None:
        """Delete a service."""
        stub = object_grpc.ObjectServiceStub(self.channel)
        ref = object_pb.ObjectRef(kind="Service", namespace="default", name=name)
        request = object_pb.DeleteObjectsRequest(refs=[ref])
        await self.ask(lambda: call(stub.DeleteObjects, request, deadline_seconds=5))

    async def restart_engine(self, *, gently: bool) -> None:
        """End the engine by SIGTERM or SIGKILL and start it again; goes to its end when cancelled."""

        async def restart() -> None:
            async with self.engine_turn:
                await asyncio.to_thread(self.engine.terminate if gently else self.engine.kill)
                await asyncio.to_thread(self.engine.start)

        await asyncio.shield(restart())

    async def engine_free(self) -> None:
        """Wait until nobody restarts the engine."""
        async with self.engine_turn:
            return

    async def proxy_audit(self) -> proxy_pb.AuditResponse:
        """Take the proxy's ledger. Raises `Failure` when it does not answer."""
        stub = proxy_grpc.ProxyServiceStub(self.proxy_channel)
        found: list[proxy_pb.AuditResponse] = []

        async def answers() -> bool:
            with contextlib.suppress(RemoteError):
                found.append(await call(stub.Audit, proxy_pb.AuditRequest(), deadline_seconds=10))
            return bool(found)

        await until(answers, "the proxy answers", 30)
        return found[-1]

    async def held(self, name: str) -> Held:
        """Look at a service's process; kubelet and proxy tell their tasks, cAdvisor's page has them."""
        tasks = await self._tasks(name)
        directory = Path(f"/proc/{self.services[name].pid}")
        return await asyncio.to_thread(_held, directory, tasks)

    async def _tasks(self, name: str) -> int:
        if name == "kubelet":
            return (await self.audit()).process.task_count
        if name == "proxy":
            return (await self.proxy_audit()).process.task_count
        program = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:4194/metrics').read().decode())"
        )
        page = await self.run("python3", "-c", program)
        lines = (line.split() for line in page.splitlines() if line.startswith("tripod_asyncio_tasks "))
        return next((int(float(words[1])) for words in lines), -1)


def _held(directory: Path, tasks: int) -> Held:
    pages = int((directory / "statm").read_text().split()[1])
    files = [_target(path) for path in (directory / "fd").iterdir()]
    # cAdvisor reads every cgroup of the host, and others come and go: only stale ones count.
    own = [path for path in files if not (path.startswith(CGROUPS) and Path(path).exists())]
    kinds = Counter(path.partition(":")[0] for path in own)
    return Held(len(own), len(list((directory / "task").iterdir())), tasks, pages * 4096, kinds)


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    """Run a node for a block; nothing of it is left afterwards but the folder with its logs."""
    kept = Path(tempfile.mkdtemp(prefix="tripod-soak-"))
    async with AsyncExitStack() as stack:
        unused = stack.enter_context(contextlib.ExitStack())
        unused.callback(shutil.rmtree, kept, ignore_errors=True)
        engine = await asyncio.to_thread(stack.enter_context, private_engine())
        base = await stack.enter_async_context(lab.kubelet_on(engine, settings=_settings("kubelet")))
        base.service.log = kept / "kubelet.log"
        channel = open_channel(f"unix://{base.folder}/run/proxy.sock")
        stack.push_async_callback(channel.close, None)
        others = {name: _service(name, base, kept) for name in ("proxy", "cadvisor")}
        made = Node(
            folder=base.folder,
            netns=base.netns,
            engine=engine,
            service=base.service,
            channel=base.channel,
            services={"kubelet": base.service, **others},
            proxy_channel=channel,
            kept=kept,
        )
        engine.log = kept / "dockerd.log"
        await asyncio.to_thread(shutil.copy, engine.folder / "dockerd.log", engine.log)
        await made.start()
        for service in others.values():
            stack.push_async_callback(service.kill)
            await service.start()
        stack.push_async_callback(made.engine_free)
        unused.pop_all()  # From now on the caller decides.
        yield made


def _settings(name: str) -> dict[str, str]:
    """Return the settings that a service of ours has a use for."""
    known = {f"TRIPOD_{each.name.upper()}" for each in fields(CONFIGS[name])}
    wanted = {
        "TRIPOD_NODE_NAME": NODE_NAME,
        "TRIPOD_POD_CIDR": "10.211.0.0/24",
        "TRIPOD_SERVICE_CIDR": "10.212.0.0/16",
        "TRIPOD_LISTEN": "",
        "TRIPOD_HTTP_LISTEN": "127.0.0.1:4194" if name == "cadvisor" else "127.0.0.1:0",
    }
    return {key: value for key, value in wanted.items() if key in known}


def _service(name: str, base: lab.Node, kept: Path) -> Service:
    places = {"TRIPOD_RUN_DIRECTORY": str(base.folder / "run"), "TRIPOD_DOCKER_HOST": base.engine.host}
    prefix = ("nsenter", f"--net=/run/netns/{base.netns}", "--")
    return Service(name, kept, {**_settings(name), **places}, prefix=prefix)


async def end(made: Node) -> dict[str, float]:
    """SIGTERM every service; returns how long each took. Raises `Failure` when one takes too long."""
    took = {name: await service.terminate() for name, service in made.services.items()}
    if max(took.values()) > 8.0:
        raise Failure(f"SIGTERM took {took}")
    return took
