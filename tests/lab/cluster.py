"""A cluster of a test's own: a control plane on this host, and whole nodes of ours in network namespaces.

    async with cluster("a", "b") as made:
        await made.apply(...)
        await made.kubectl("wait", "--for=condition=Ready", "pod/web")
        await made.nodes["a"].services["kubelet"].kill()

Each node has its own Docker Engine, kubelet, proxy and cAdvisor. The API server runs on this host; nodes find
it, and each other, over a switch. Everything goes at the end, but the logs of a block that failed.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from services.cadvisor.config import CadvisorConfig
from services.kubelet.config import KubeletConfig
from services.proxy.config import ProxyConfig
from tests.lab.apifaults import ApiFaults, api_faults
from tests.lab.dockerd import PrivateEngine, private_engine
from tests.lab.kubernetes import START_SECONDS, ControlPlane, Done, control_plane
from tests.lab.network import LabNetwork, lab_network
from tests.lab.node import network_namespace
from tests.matrix.process import Service
from tools.cluster.layout import Layout, NodeFiles, prepare_node

_CONFIGS: Mapping[str, Any] = {"kubelet": KubeletConfig, "proxy": ProxyConfig, "cadvisor": CadvisorConfig}


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One node. `faults` stands between its kubelet and the API server, if the cluster has such."""

    name: str
    address: str
    netns: str
    folder: Path
    engine: PrivateEngine
    services: Mapping[str, Service]
    faults: ApiFaults | None = None

    async def run(self, *words: str) -> str:
        """Run a program in the node's network namespace; return what it prints, errors too."""
        process = await asyncio.create_subprocess_exec(
            "nsenter",
            f"--net=/run/netns/{self.netns}",
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return out.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A control plane and its nodes, by name."""

    plane: ControlPlane
    network: LabNetwork
    nodes: Mapping[str, ClusterNode]

    async def kubectl(self, *words: str, **how: Any) -> Done:
        """Run kubectl as the administrator."""
        return await self.plane.kubectl(*words, **how)

    async def apply(self, *objects: Mapping[str, Any]) -> None:
        """Apply objects."""
        await self.plane.apply(*objects)

    async def node_ready(self, name: str) -> bool:
        """Tell whether a node is there and Ready."""
        answer = await self.plane.request("GET", f"/api/v1/nodes/{name}")
        conditions = answer.body.get("status", {}).get("conditions", []) if answer.status == 200 else []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    async def pod(self, name: str) -> dict[str, Any]:
        """Return a pod of the namespace `default`."""
        found: dict[str, Any] = await self.plane.get(f"/api/v1/namespaces/default/pods/{name}")
        return found

    async def pods(self, selector: str = "") -> list[dict[str, Any]]:
        """Return the pods of the namespace `default`, those of a label selector."""
        path = "/api/v1/namespaces/default/pods"
        answer = await self.plane.request("GET", path, query={"labelSelector": selector})
        assert answer.status == 200, answer.body
        return list(answer.body["items"])

    async def ready(self, *names: str, seconds: float = 60) -> None:
        """Wait until pods are ready. Raises `AssertionError` with what each is told to wait for."""
        wanted = [f"pod/{name}" for name in names]
        done = await self.kubectl(
            "wait",
            "--for=condition=Ready",
            f"--timeout={seconds:g}s",
            *wanted,
            check=False,
            seconds=seconds + 30,
        )
        if done.code:
            told = await self.kubectl("describe", *wanted, check=False)
            raise AssertionError(f"{done.err}\n{told.out}\n{self.logs()}")

    async def delete(self, *words: str) -> None:
        """Delete objects, as kubectl names them, and wait until they are gone."""
        await self.kubectl("delete", "--ignore-not-found", "--timeout=90s", *words, seconds=120)

    def logs(self) -> str:
        """Return the end of each kubelet's log."""
        return "\n".join(f"{name}: {node.services['kubelet'].tail()}" for name, node in self.nodes.items())


async def until(holds: Callable[[], Awaitable[Any]], what: str, seconds: float = 30) -> Any:
    """Wait for a true answer and return it. Raises `AssertionError`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        if found := await holds():
            return found
        assert loop.time() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.1)


@asynccontextmanager
async def cluster(
    *names: str, faults: bool = False, images: Sequence[str] = (), settings: Mapping[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """Run a cluster of so many nodes for a block; all of them are ready when it begins.

    With `faults`, a proxy that harms stands before each kubelet. `images` are more names of the test image,
    `settings` more of each service's. Raises `EngineUnavailable`.
    """
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(lab_network())
        kept = Path(tempfile.mkdtemp(prefix="tripod-cluster-"))
        engines = [await asyncio.to_thread(stack.enter_context, private_engine()) for _ in names]
        for engine in engines:
            for image in images:
                await asyncio.to_thread(engine.add_image, image)
        plane = await stack.enter_async_context(
            control_plane(address=network.host, controllers=True, scheduler=True)
        )
        nodes = {}
        for name, engine in zip(names, engines, strict=True):
            ground = Ground(plane.layout, network, engine, kept)
            made = cluster_node(name, ground, plane=plane if faults else None, settings=settings)
            nodes[name] = await stack.enter_async_context(made)
        found = Cluster(plane, network, nodes)
        try:
            await _joined(found)
            yield found
        except BaseException:
            _keep_logs(found, kept)
            raise
        shutil.rmtree(kept)


async def _joined(made: Cluster) -> None:
    async def ready() -> bool:
        for node in made.nodes.values():
            ended = [each.tail() for each in node.services.values() if each.dead]
            assert not ended, ended
        return all([await made.node_ready(name) for name in made.nodes])

    try:
        await until(ready, "all nodes are ready", START_SECONDS)
    except AssertionError as error:
        told = (await made.kubectl("describe", "nodes", check=False)).out
        raise AssertionError(f"{error}\n{told}\n{made.logs()}") from error


def _keep_logs(made: Cluster, kept: Path) -> None:
    for log in made.plane.layout.folder.glob("*.log"):
        shutil.copy(log, kept)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a node stands on: where it finds the cluster, its engine, and where its logs go."""

    layout: Layout
    network: LabNetwork
    engine: PrivateEngine
    logs: Path


@asynccontextmanager
async def cluster_node(
    name: str, ground: Ground, *, plane: ControlPlane | None = None, settings: Mapping[str, str] | None = None
) -> AsyncIterator[ClusterNode]:
    """Run the three services of a node in a network namespace of its own for a block.

    With `plane`, a proxy that harms stands between the kubelet and the API server.
    """
    async with AsyncExitStack() as stack:
        netns = await stack.enter_async_context(network_namespace())
        address = await ground.network.join(netns)
        files = prepare_node(ground.layout, name, address)
        faults = None
        if plane is not None:
            made = api_faults(plane, files.kubeconfig, host=ground.network.host)
            faults = await stack.enter_async_context(made)
            files = prepare_node(ground.layout, name, address, url=faults.url)
            # The harmful one asks as the kubelet, who may not see what a proxy needs.
            ground.layout.kubeconfig(files.proxy_kubeconfig, "system:kube-proxy")
        folder = Path(f"/tmp/{netns}")
        (folder / "run").mkdir(parents=True)
        stack.push_async_callback(asyncio.to_thread, shutil.rmtree, folder, ignore_errors=True)
        logs = ground.logs / name
        logs.mkdir()
        common = {
            **_where(ground, folder),
            **_who(name, address, files),
            **(settings or {}),
        }
        services = {
            each: Service(each, logs, _own(each, common, files), prefix=_inside(netns)) for each in _CONFIGS
        }
        # cAdvisor first, so that the kubelet finds it; the proxy waits for whom it follows.
        for each in ("cadvisor", "kubelet", "proxy"):
            stack.push_async_callback(services[each].kill)
            await services[each].start()
        yield ClusterNode(name, address, netns, folder, ground.engine, services, faults)


def _inside(netns: str) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{netns}", "--")


def _where(ground: Ground, folder: Path) -> dict[str, str]:
    return {
        "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_DOCKER_HOST": ground.engine.host,
        "TRIPOD_SERVICE_CIDR": ground.layout.service_cidr,
        "TRIPOD_CLUSTER_CIDR": ground.layout.pod_cidr,
        "TRIPOD_LISTEN": "",
        "TRIPOD_HTTP_LISTEN": "127.0.0.1:0",
    }


def _who(name: str, address: str, files: NodeFiles) -> dict[str, str]:
    return {
        "TRIPOD_NODE_NAME": name,
        "TRIPOD_NODE_IP": address,
        "TRIPOD_TLS_CERT_FILE": str(files.certificate),
        "TRIPOD_TLS_PRIVATE_KEY_FILE": str(files.key),
        "TRIPOD_CLIENT_CA_FILE": str(files.authority),
    }


def _own(service: str, common: Mapping[str, str], files: NodeFiles) -> dict[str, str]:
    """Return a service's settings: a service refuses those of others."""
    kubeconfig = files.proxy_kubeconfig if service == "proxy" else files.kubeconfig
    wanted = {**common, "TRIPOD_KUBECONFIG": str(kubeconfig)}
    if service == "cadvisor":
        # Where the kubelet looks for its page.
        wanted["TRIPOD_HTTP_LISTEN"] = "127.0.0.1:4194"
    known = {f"TRIPOD_{each.name.upper()}" for each in fields(_CONFIGS[service])}
    return {key: value for key, value in wanted.items() if key in known}
