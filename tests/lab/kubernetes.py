"""A Kubernetes control plane of a test's own, from the binaries of `make peers`.

    async with control_plane() as made:
        files = made.node("a")                      # kubeconfigs and certificates of a node
        await made.kubectl("get", "nodes")
        made.end("kube-apiserver")

It listens on loopback, or on an address of the test's. Everything of it goes at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.lab.ports import free_port
from tools.cluster.component import PEERS, Component, api_ready
from tools.cluster.layout import COMPONENTS, Layout, NodeFiles, Ports, prepare, prepare_node

START_SECONDS = 90.0
_built = all((PEERS / name).exists() for name in (*COMPONENTS, "kubectl"))
needs_kubernetes = pytest.mark.skipif(not _built, reason="Kubernetes is not built: run `make peers`")


@dataclass(frozen=True, slots=True)
class Done:
    """How kubectl ended, and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server answered."""

    status: int
    body: Any


class ControlPlane:
    """A control plane that runs. Its components are ended and started by name."""

    def __init__(
        self, layout: Layout, components: Mapping[str, Component], http: aiohttp.ClientSession
    ) -> None:
        self.layout = layout
        self.url = layout.url
        self.admin = layout.admin
        self._components = components
        self._http = http

    def component(self, name: str) -> Component:
        """Return a component."""
        return self._components[name]

    def node(self, name: str, *addresses: str, url: str = "") -> NodeFiles:
        """Make what a node needs to join. `url` leads it to the API server by a proxy."""
        return prepare_node(self.layout, name, *(addresses or ("127.0.0.1",)), url=url)

    def kubeconfig(self, user: str, *groups: str, url: str = "") -> Path:
        """Make a kubeconfig of a user in groups."""
        path = self.layout.folder / "users" / f"{user.replace(':', '-')}.conf"
        return self.layout.kubeconfig(path, user, *groups, url=url)

    async def end(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End a component and wait until it is gone."""
        await asyncio.to_thread(self._components[name].end, how)

    async def start(self, name: str) -> None:
        """Start a component; unless the API server is ended, wait until that is ready again."""
        self._components[name].start()
        if self._components["kube-apiserver"].pid:
            await self.ready()

    async def ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until the API server is ready. Raises `AssertionError`, `ComponentError`.

        Controllers that gave up while it was away are started again, as whoever keeps them does.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while why := await asyncio.to_thread(api_ready, self.layout):
            for name in COMPONENTS[:2]:
                self._components[name].check()
            assert loop.time() < deadline, f"the API server is not ready after {seconds:g} s: {why}"
            await asyncio.sleep(0.1)
        for name, component in self._components.items():
            if name in COMPONENTS[2:]:
                component.start()

    async def controllers_ready(self) -> None:
        """Wait until a pod can be made in the namespace `default`: controllers make what it asks for."""
        for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
            async with asyncio.timeout(START_SECONDS):
                while (  # noqa: ASYNC110  # the condition lies behind a wire
                    await self.request("GET", f"/api/v1/namespaces/default/{path}")
                ).status != 200:
                    await asyncio.sleep(0.1)

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "application/json",
    ) -> Answer:
        """Ask the API server as its administrator; `kind` is the body's media type."""
        headers = {"Content-Type": kind, "Accept": "application/json"}
        data = None if body is None else json.dumps(body)
        async with self._http.request(
            method, self.url + path, data=data, params=query, headers=headers
        ) as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json"
            return Answer(answer.status, json.loads(text) if is_json else text)

    async def get(self, path: str) -> Any:
        """Return an object or a list. Raises `AssertionError` when the API server refuses."""
        answer = await self.request("GET", path)
        assert answer.status == 200, answer.body
        return answer.body

    async def create(self, path: str, body: Any) -> Any:
        """Create an object; return it. Raises `AssertionError` when the API server refuses."""
        answer = await self.request("POST", path, body)
        assert answer.status in (200, 201), answer.body
        return answer.body

    async def apply(self, *objects: Mapping[str, Any]) -> None:
        """Apply objects as kubectl does."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        await self.kubectl("apply", "-f", "-", data=json.dumps(listed).encode())

    async def kubectl(
        self,
        *words: str,
        data: bytes | None = None,
        check: bool = True,
        seconds: float = 60.0,
        kubeconfig: Path | None = None,
    ) -> Done:
        """Run kubectl to its end. Raises `AssertionError` when it fails, unless `check` is off."""
        process = await asyncio.create_subprocess_exec(
            PEERS / "kubectl",
            *words,
            env=self.environment(kubeconfig),
            stdin=asyncio.subprocess.DEVNULL if data is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(seconds):
                out, err = await process.communicate(data)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        done = Done(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
        assert not check or done.code == 0, f"kubectl {' '.join(words)}: {done.err}{done.out}"
        return done

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """Return the environment of a kubectl: it keeps its files below our folder."""
        home = self.layout.folder
        return {**os.environ, "KUBECONFIG": str(kubeconfig or self.admin), "HOME": str(home)}

    async def compact(self) -> int:
        """Forget every change up to now, so that old resource versions answer 410; return the revision.

        A watch cache serves from its memory what etcd has forgotten: restart the API server to empty it.
        """
        base = f"http://127.0.0.1:{self.layout.ports.etcd}/v3/kv"
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{base}/range", json={"key": "AA=="}) as answer:
                revision = int((await answer.json())["header"]["revision"])
            async with http.post(f"{base}/compaction", json={"revision": revision}) as answer:
                assert answer.status == 200, await answer.text()
        return revision


@asynccontextmanager
async def control_plane(
    *,
    address: str = "127.0.0.1",
    controllers: bool = False,
    scheduler: bool = False,
    more: Mapping[str, Sequence[str]] | None = None,
) -> AsyncIterator[ControlPlane]:
    """Run etcd and the API server for a block, and with them the controllers and the scheduler if asked.

    `address` is one of this host's: `tests.lab.network` makes one that nodes in network namespaces reach.
    `more` are flags of components. Without controllers, pods can be made in the namespace `default` alone.
    """
    names = [
        name for name, wanted in zip(COMPONENTS, (True, True, controllers, scheduler), strict=True) if wanted
    ]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tk-", dir="/tmp")))
        layout = Layout(
            folder,
            address,
            Ports(free_port(address), *(free_port() for _ in range(4))),
            fsync=False,
            more=more or {},
        )
        await asyncio.to_thread(prepare, layout)
        components = {name: Component(layout, name) for name in names}
        http = await stack.enter_async_context(_session(layout))
        made = ControlPlane(layout, components, http)
        stack.push_async_callback(_end, list(components.values()))
        for name in ("etcd", "kube-apiserver"):
            components[name].start()
        await made.ready()
        if not controllers:
            await _in_place_of_controllers(made)
        await made.controllers_ready()
        yield made


async def _in_place_of_controllers(plane: ControlPlane) -> None:
    """Make in `default` what pods ask for, and controllers would have made."""
    base = "/api/v1/namespaces/default"
    await plane.create(f"{base}/serviceaccounts", {"metadata": {"name": "default"}})
    authority = (plane.layout.pki / "ca.crt").read_text()
    root = {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": authority}}
    await plane.create(f"{base}/configmaps", root)


async def _end(components: Sequence[Component]) -> None:
    # Whoever asks others goes first.
    for component in reversed(components):
        await asyncio.to_thread(component.end, signal.SIGKILL)


def _session(layout: Layout) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=client_context(layout)), timeout=aiohttp.ClientTimeout(total=30)
    )


def client_context(
    layout: Layout, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Trust the cluster's authority, and come with a certificate: the administrator's if none is given."""
    context = ssl.create_default_context(cafile=layout.pki / "ca.crt")
    mine = layout.pki / "apiserver-kubelet-client"
    context.load_cert_chain(certificate or f"{mine}.crt", key or f"{mine}.key")
    return context


def _free_ports(address: str) -> Ports:
    found = {free_port(address): None}
    while len(found) < 5:
        found[free_port()] = None
    return Ports(*found)
