"""kubectl on a pod of ours: by a real kube-apiserver, the kubelet's HTTPS port, and a real engine."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from services.kubelet.app import cleanup
from services.kubelet.config import KubeletConfig
from tests import waiting
from tests.lab.dockerd import EngineUnavailable, import_image
from tests.lab.kubernetes import ControlPlane, client_context, control_plane, needs_kubernetes
from tests.lab.ports import free_port
from tests.matrix.process import Service, until
from tools.cluster.component import PEERS

pytestmark = [
    pytest.mark.docker,
    pytest.mark.process,
    needs_kubernetes,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
NODE = "http-node"
PODS = "/api/v1/namespaces/default/pods"
SCRIPT = "i=0; while :; do echo tick $i; echo bad $i >&2; i=$((i+1)); sleep 0.2; done"


@dataclass
class Cluster:
    """A control plane, and the one node in it."""

    plane: ControlPlane
    service: Service
    port: int
    folder: Path

    async def kubectl(self, *words: str, **more: Any) -> str:
        """Run kubectl; return what it wrote."""
        return (await self.plane.kubectl(*words, **more)).out

    def usage(self) -> int:
        """Count the kubelet's open files."""
        assert self.service._process is not None
        return len(list(Path(f"/proc/{self.service._process.pid}/fd").iterdir()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One for all tests of this file, with a pod `web` that has a page, a ticker and a shell."""
    image, mark = f"tripod-http:{os.getpid()}", uuid.uuid4().hex[:5]
    try:
        await asyncio.to_thread(import_image, image)
    except EngineUnavailable as why:
        pytest.skip(str(why))
    folder = tmp_path_factory.mktemp("h")
    try:
        async with control_plane() as plane, _node(plane, folder, mark) as made:
            await plane.create(PODS, _pod(image))

            async def ready() -> bool:
                found = await plane.get(f"{PODS}/web")
                conditions = found.get("status", {}).get("conditions", ())
                return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

            await until(ready, "the pod is ready", 90)
            yield made
    finally:
        command = ["docker", "image", "rm", "-f", image]
        await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)


@asynccontextmanager
async def _node(plane: ControlPlane, folder: Path, mark: str) -> AsyncIterator[Cluster]:
    files, port = plane.node(NODE), free_port()
    config = KubeletConfig(
        node_name=NODE,
        state_directory=folder / "state",
        run_directory=folder / "run",
        bridge=f"th{mark}",
        pod_cidr="10.201.98.0/24",
        chain_prefix=f"TH{mark.upper()}",
        veth_prefix=f"h{mark[:3]}",
        pod_network="bridge",
    )
    own = ("node_name", "state_directory", "run_directory", "bridge", "pod_cidr", "pod_network")
    settings = {name: getattr(config, name) for name in (*own, "chain_prefix", "veth_prefix")}
    settings |= {
        "kubeconfig": files.kubeconfig,
        "node_ip": "127.0.0.1",
        "kubelet_listen": f"127.0.0.1:{port}",
        "tls_cert_file": files.certificate,
        "tls_private_key_file": files.key,
        "client_ca_file": files.authority,
    }
    service = Service("kubelet", folder, {f"TRIPOD_{k.upper()}": str(v) for k, v in settings.items()})
    try:
        await service.start()
        yield Cluster(plane, service, port, folder)
    finally:
        await service.kill()
        await cleanup(config)


def _pod(image: str) -> dict[str, Any]:
    def container(name: str, *command: str) -> dict[str, Any]:
        return {
            "name": name,
            "image": image,
            "imagePullPolicy": "Never",
            "command": list(command),
            "stdin": name == "echo",
        }

    containers = [
        container("web", "httpd", "-f", "-p", "8080", "-h", "/etc"),
        container("tick", "sh", "-c", SCRIPT),
        container("echo", "sh", "-c", 'while read -r line; do echo "got $line"; done; sleep 10000'),
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "nodeName": NODE,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": containers,
        },
    }


async def test_logs_come_with_every_option(cluster: Cluster) -> None:
    """Of the output, of the end, with times, on and on."""
    last = await cluster.kubectl("logs", "web", "-c", "tick", "--tail=2")
    timed = await cluster.kubectl("logs", "web", "-c", "tick", "--timestamps", "--limit-bytes=20")
    missing = await cluster.plane.kubectl("logs", "web", "-c", "none", check=False)
    previous = await cluster.plane.kubectl("logs", "web", "-c", "tick", "-p", check=False)
    follower = await asyncio.create_subprocess_exec(
        PEERS / "kubectl",
        *("logs", "-f", "web", "-c", "tick", "--since=1s"),
        env=cluster.plane.environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert follower.stdout is not None
    async with asyncio.timeout(30):
        seen = [await follower.stdout.readline() for _ in range(20)]
    follower.kill()
    await follower.communicate()

    assert len(last.splitlines()) == 2
    assert timed.startswith("20")
    assert len(timed) == 20
    assert "container none is not valid for pod web" in missing.err
    assert 'previous terminated container "tick" in pod "web" not found' in previous.err
    assert all(line.startswith((b"tick", b"bad")) for line in seen)


@pytest.mark.parametrize("websockets", ["true", "false"])
async def test_exec_has_its_streams_and_its_exit_code(cluster: Cluster, websockets: str) -> None:
    """Over WebSocket and over SPDY."""
    more = ("exec", "-i", "web", "-c", "web", "--", "sh", "-c")
    cluster_environment = os.environ | {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": websockets}
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "environ", cluster_environment)
    try:
        data = os.urandom(3 << 20)
        done = await cluster.plane.kubectl(*more, "md5sum; echo oops >&2; exit 7", data=data, check=False)
    finally:
        patch.undo()

    assert done.out.split()[0] == hashlib.md5(data).hexdigest()
    assert "oops" in done.err
    assert done.code == 7


async def test_a_terminal_is_a_terminal(cluster: Cluster) -> None:
    """`-t` gives one where kubectl has one: `script` does."""
    command = f"{PEERS / 'kubectl'} exec -it web -c web -- sh -c 'test -t 0 && echo yes'"
    process = await asyncio.create_subprocess_exec(
        *("script", "-qec", command, "/dev/null"),
        env=cluster.plane.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, _ = await process.communicate()

    assert b"yes" in out


async def test_attach_talks_to_the_container(cluster: Cluster) -> None:
    """Its own input and output."""
    process = await asyncio.create_subprocess_exec(
        PEERS / "kubectl",
        *("attach", "-i", "web", "-c", "echo"),
        env=cluster.plane.environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    async with asyncio.timeout(30):
        line = await process.stdout.readline()
    process.kill()
    await process.wait()

    assert line == b"got hello\n"


async def test_files_are_copied_both_ways(cluster: Cluster) -> None:
    """`kubectl cp` is `tar` through exec."""
    there, back = cluster.folder / "there", cluster.folder / "back"
    there.write_bytes(os.urandom(2 << 20))
    await cluster.kubectl("exec", "web", "-c", "web", "--", "busybox", "ln", "-sf", "busybox", "/bin/tar")
    await cluster.kubectl("cp", str(there), "web:/tmp-copy", "-c", "web")
    await cluster.kubectl("cp", "web:/tmp-copy", str(back), "-c", "web")

    assert back.read_bytes() == there.read_bytes()


async def test_a_port_is_forwarded(cluster: Cluster) -> None:
    """Many requests, many at once."""
    local = free_port()
    process = await asyncio.create_subprocess_exec(
        PEERS / "kubectl",
        *("port-forward", "pod/web", f"{local}:8080"),
        env=cluster.plane.environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            await process.stdout.readline()

            async def fetch() -> tuple[int, str]:
                async with session.get(f"http://127.0.0.1:{local}/passwd") as answer:
                    return answer.status, await answer.text()

            answers = await asyncio.gather(*(fetch() for _ in range(30)))
    finally:
        process.kill()
        await process.wait()

    assert {status for status, _ in answers} <= {200, 404}
    assert len(set(answers)) == 1


async def test_the_api_servers_certificate_reads_everything(cluster: Cluster) -> None:
    """Health, pods, statistics, metrics: each with what the original has there."""
    connector = aiohttp.TCPConnector(ssl=client_context(cluster.plane.layout))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def raw(path: str) -> str:
            async with session.get(f"https://127.0.0.1:{cluster.port}/{path}") as answer:
                assert answer.status == 200, await answer.text()
                return await answer.text()

        assert await raw("healthz") == "ok"
        assert '"web"' in await raw("pods")
        assert '"web"' in await raw("runningpods/")
        assert NODE in await raw("stats/summary")
        assert "kubelet_runtime_operations_total" in await raw("metrics")
        assert "resource_scrape_error" in await raw("metrics/resource")
        assert "KubeletConfiguration" in await raw("configz")


async def test_the_api_server_says_who_may(cluster: Cluster) -> None:
    """A service account's token may read what its role says, and cannot run commands by it."""
    await cluster.kubectl("create", "serviceaccount", "reader")
    await cluster.kubectl(
        "create", "clusterrole", "reader", "--verb=get", "--resource=nodes/proxy,nodes/metrics"
    )
    await cluster.kubectl(
        "create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=default:reader"
    )
    token = (await cluster.kubectl("create", "token", "reader")).strip()
    context = ssl.create_default_context(cafile=cluster.plane.layout.pki / "ca.crt")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def ask(path: str, given: str, **headers: str) -> int:
            url = f"https://127.0.0.1:{cluster.port}{path}"
            async with session.get(url, headers={"Authorization": f"Bearer {given}", **headers}) as answer:
                return answer.status

        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        command = "/exec/default/web/web?command=id&output=1"
        assert await ask("/metrics", token) == 200
        assert await ask("/pods", token) == 200
        assert await ask("/stats/summary", token) == 403
        assert await ask(command, token, **upgrade) == 403
        assert await ask("/metrics", f"{token}x") == 401


async def test_streams_that_were_cut_leave_no_files_open(cluster: Cluster) -> None:
    """Ninety streams, killed as they begin and as they run: one file of every fourth would be seen."""
    await cluster.kubectl("exec", "web", "-c", "web", "--", "true")
    before = cluster.usage()
    words: list[tuple[str, ...]] = [("logs", "-f", "web", "-c", "tick")] * 15
    words += [("exec", "-i", "web", "-c", "web", "--", "sleep", "1000")] * 15
    for most in (20, 40, 60):
        processes = [
            await asyncio.create_subprocess_exec(
                PEERS / "kubectl",
                *word,
                env=cluster.plane.environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            for word in words
        ]
        try:
            async with asyncio.timeout(60):
                while cluster.usage() < before + most:  # noqa: ASYNC110  # another process opens them
                    await asyncio.sleep(0.005)
        finally:
            for process in processes:
                process.kill()
                await process.wait()
        # Connections to the engine and the API server are kept for a while, some more after a crowd.
        await waiting.until(lambda: cluster.usage() < before + 20, 60)
