"""What pods bring in reaches their containers, on every runtime: variables, files, tokens, sub paths."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pb

from tests.lab.node import BareNode, pod
from tests.runtimes.test_pods import run

pytestmark = [
    pytest.mark.docker,
    pytest.mark.netns,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
CANARY = "canary-4f1d77"
SETTINGS = {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"mode": "fast", "sub": "logs"}}
KEY = {"kind": "Secret", "metadata": {"name": "key"}, "stringData": {"password": CANARY}}


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _empty(made: BareNode) -> AsyncIterator[None]:
    yield
    await made.delete_all()
    await made.clean()


async def apply(made: BareNode, *objects: dict[str, Any]) -> None:
    """Apply objects."""
    for value in objects:
        await made.apply({"apiVersion": "v1", **value})


def a_pod(name: str, volumes: Sequence[Any] = (), **container: Any) -> dict[str, Any]:
    """Write a pod that waits."""
    wanted = pod(name, grace_seconds=0, volumes=list(volumes), container=container)
    wanted["metadata"]["labels"] = {"tier": "front"}
    return wanted


async def read(made: BareNode, pod: str, path: str) -> str:
    """Read a file in a container."""
    code, out, err = await run(made, pod, "cat", path)
    assert code == 0, err
    return out.decode()


async def test_variables_and_files_come_from_objects(made: BareNode) -> None:
    """Once the objects are there, which wakes the pod; changes flow into files, not by a sub path."""
    volumes = [
        {"name": "config", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "key", "defaultMode": 0o400}},
        {
            "name": "self",
            "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]},
        },
    ]
    mounts = [
        {"name": "config", "mountPath": "/config"},
        {"name": "config", "mountPath": "/mode", "subPath": "mode"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "self", "mountPath": "/self"},
    ]
    env = [
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "key", "key": "password"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    sources = [{"prefix": "S_", "configMapRef": {"name": "settings"}}]
    await apply(made, a_pod("web", volumes, volumeMounts=mounts, env=env, envFrom=sources))

    async def told() -> bool:
        events = await made.events("web")
        return any(e.reason == "FailedMount" and "not found" in e.message for e in events)

    await made.until(told, "the pod is told what is missing")
    await apply(made, SETTINGS, KEY)
    found = await made.ready("web")
    _, out, _ = await run(made, "web", "env")
    _, kind, _ = await run(made, "web", "stat", "-f", "-c", "%T", "/secret")
    before = [await read(made, "web", path) for path in ("/config/mode", "/mode", "/secret/password")]
    labels = await read(made, "web", "/self/l")
    refused, _, _ = await run(made, "web", "sh", "-c", "echo x > /config/mode")
    await apply(made, {**SETTINGS, "data": {"mode": "slow"}})

    async def changed() -> bool:
        return await read(made, "web", "/config/mode") == "slow"

    await made.until(changed, "the change is in the container")
    env_lines = out.decode().splitlines()
    assert f"PASSWORD={CANARY}" in env_lines
    assert f"IP={found.pod_ips[0]}" in env_lines
    assert "S_mode=fast" in env_lines
    assert before == ["fast", "fast", CANARY]
    assert labels == 'tier="front"'
    assert kind.strip() == b"tmpfs"
    assert refused != 0
    assert await read(made, "web", "/mode") == "fast"
    assert (await made.ready("web")).containers[0].restart_count == 0
    assert CANARY not in await asyncio.to_thread(made.service.log.read_text)


async def test_a_missing_key_makes_a_container_wait(made: BareNode) -> None:
    """With the reason of Kubernetes, until the key is there."""
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]
    await apply(made, a_pod("waits", env=env))

    found = await made.waits("waits", "CreateContainerConfigError")
    await apply(made, {"kind": "ConfigMap", "metadata": {"name": "late"}, "data": {"a": "1"}})
    await made.ready("waits")

    assert found.containers[0].state.message == 'configmap "late" not found'


async def test_memory_sub_paths_and_paths_of_the_host(made: BareNode) -> None:
    """A volume in memory is limited; a sub path is made, by its expression too; a host's folder is made."""
    host = made.folder / "from-host/new"
    volumes = [
        {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "data", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": str(host), "type": "DirectoryOrCreate"}},
    ]
    mounts = [
        {"name": "fast", "mountPath": "/fast"},
        {"name": "data", "mountPath": "/all"},
        {"name": "data", "mountPath": "/part", "subPathExpr": "of/$(NAME)"},
        {"name": "host", "mountPath": "/host"},
    ]
    env = [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    await apply(made, a_pod("paths", volumes, volumeMounts=mounts, env=env))
    await made.ready("paths")
    await run(made, "paths", "sh", "-c", "echo x > /part/file; echo y > /host/file")
    _, size, _ = await run(made, "paths", "stat", "-f", "-c", "%T %b %S", "/fast")
    part = await read(made, "paths", "/all/of/paths/file")
    kind, blocks, block = size.decode().split()

    assert part == "x\n"
    assert await asyncio.to_thread(Path(host / "file").read_text) == "y\n"
    assert kind == "tmpfs"
    assert int(blocks) * int(block) == 1 << 20


async def test_a_volume_that_outgrows_its_limit_ends_its_pod(made: BareNode) -> None:
    """As Evicted, which a restart of the kubelet does not forget."""
    volumes = [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}]
    script = "dd if=/dev/zero of=/data/f bs=1M count=3; sleep 1000000"
    mounts = [{"name": "data", "mountPath": "/data"}]
    wanted = a_pod("greedy", volumes, volumeMounts=mounts, command=["sh", "-c", script])
    await apply(made, wanted)
    found = await made.phase("greedy", pb.POD_PHASE_FAILED)
    await made.service.terminate()
    await made.start()
    again = await made.phase("greedy", pb.POD_PHASE_FAILED)

    assert found.reason == "Evicted"
    assert found.message == 'Usage of EmptyDir volume "data" exceeds the limit "1Mi". '
    assert (again.reason, again.message) == (found.reason, found.message)


async def test_a_token_is_bound_to_its_pod(made: BareNode) -> None:
    """Its claims name the pod and the account; the file is the same after a restart of the kubelet."""
    token = {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}}
    volumes = [{"name": "token", "projected": {"sources": [token]}}]
    wanted = a_pod("robot", volumes, volumeMounts=[{"name": "token", "mountPath": "/token"}])
    wanted["spec"]["serviceAccountName"] = "robot"
    await apply(made, {"kind": "ServiceAccount", "metadata": {"name": "robot"}}, wanted)
    uid = (await made.ready("robot")).uid
    text = await read(made, "robot", "/token/token")
    await made.service.terminate()
    await made.start()
    await made.ready("robot")
    again = await read(made, "robot", "/token/token")
    middle = text.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))

    assert claims["sub"] == "system:serviceaccount:default:robot"
    assert claims["aud"] == ["vault"]
    assert claims["exp"] - claims["iat"] == 600
    assert claims["kubernetes.io"]["pod"] == {"name": "robot", "uid": uid}
    assert again == text
