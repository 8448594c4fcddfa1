"""Kill the kubelet at every instant of a pod's life, with a CRI server that outlives it.

The story: a bystander runs all the time. A pod of two containers is applied, becomes
ready, crashes once, sees a ConfigMap change, is deleted; it brings variables, files, a token
and, where the tests may mount, volumes in memory and by sub path. Another comes and goes
as a file of the manifest directory. A pod that nobody wants any more is found at the runtime and removed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as cri

from services.common.grpcclient import open_channel
from services.kubelet.adapters import mounting
from services.kubelet.core.model import PodUid
from services.kubelet.core.volumes import files_dir
from tests.fakes.cri_server import UID_LABEL, FakeCri, cri_server
from tests.lab.kubelet_client import KubeletClient
from tests.matrix.process import Failure, Service, enumerate_instants, until
from tests.matrix.world import CANARY, judge_bounds, judge_folders, judge_order, judge_silence

IMAGE, PULLED = "app:1", "registry.test/app:2"
CAPS = {"open files": 80, "threads": 40, "tasks": 120}
OCCURRENCES = 2
Act = Callable[["World"], Awaitable[None]]


def pod(name: str, image: str = IMAGE, policy: str = "IfNotPresent") -> dict[str, Any]:
    """Write a pod of two containers with a volume and a value that must never be told."""
    container = {
        "image": image,
        "imagePullPolicy": policy,
        "env": [{"name": "TOKEN", "value": CANARY}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [{"name": "app", **container}, {"name": "side", **container}],
        },
    }


@dataclass(kw_only=True)
class World(KubeletClient):
    """What outlives a kill: the runtime, the state directory, and what was seen."""

    folder: Path
    fake: FakeCri


async def prepare(folder: Path) -> FakeCri:
    """Make the state that every instant begins with: a bystander that runs. Returns the runtime's state."""
    fake = FakeCri(IMAGE, pullable=(PULLED,))  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    async with world(folder, fake) as made:
        await made.service.start()
        await made.apply(pod("bystander"))
        await made.ready("bystander")
        await made.service.terminate()
    return fake


@asynccontextmanager
async def world(folder: Path, fake: FakeCri) -> AsyncIterator[World]:
    """Serve the runtime for a block; the kubelet is ended with it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = cri_server(fake, folder / "fake.sock")
    await server.start()
    environment = {
        "TRIPOD_NODE_NAME": "matrix",
        "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_CRI_ENDPOINT": f"unix://{folder}/fake.sock",
    }
    service = Service("kubelet", folder, environment)
    channel = open_channel(f"unix://{folder}/run/kubelet.sock")
    try:
        yield World(folder=folder, fake=fake, service=service, channel=channel)
    finally:
        await service.kill()
        await channel.close(None)
        await server.stop(0.1)


def bringing(wanted: dict[str, Any]) -> dict[str, Any]:
    """Let a pod bring in whatever can be had here."""
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
    labels = {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}
    volumes = [
        {"name": "config", "configMap": {"name": "settings"}},
        {"name": "key", "secret": {"secretName": "key"}},
        {"name": "all", "projected": {"sources": [token, labels]}},
    ]
    mounts = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
    if mounting.may_mount():
        volumes.append({"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
        mounts.append({"name": "fast", "mountPath": "/fast", "subPath": "a/b"})
    wanted["spec"]["volumes"] += volumes
    container = wanted["spec"]["containers"][0]
    container["volumeMounts"] = [*container["volumeMounts"], *mounts]
    secret = {"secretKeyRef": {"name": "key", "key": "password"}}
    container["env"] = [*container["env"], {"name": "PASSWORD", "valueFrom": secret}]
    return wanted


def settings(mode: str) -> dict[str, Any]:
    """Write the ConfigMap that the story changes."""
    data = {"mode": mode, "other": "x"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data}


async def _apply(made: World) -> None:
    key = {"password": CANARY}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": key}
    await made.apply(settings("fast"), secret, bringing(pod("victim", PULLED, "Always")))
    await made.ready("victim")


async def _change(made: World) -> None:
    await made.apply(settings("slow"))
    uid = (await made.pods())["victim"].uid
    volume = files_dir(made.folder / "state", PodUid(uid), "config", "configMap")

    async def changed() -> bool:
        await made.service.revive()
        try:
            seen = await asyncio.to_thread((volume / "..data/mode").read_text)
        except FileNotFoundError:
            return False  # The folder that the link led to was taken away just then.
        if seen not in ("fast", "slow"):
            raise Failure(f"I5 no loss: the file holds {seen!r}")
        return seen == "slow"

    await until(changed, "the change is in the volume", 30.0)


async def _crash(made: World) -> None:
    uid = (await made.pods())["victim"].uid
    made.fake.crash(uid, "app", 3)
    found = await made.ready("victim", restarts=1)
    last = found.containers[0].last_termination_state.exit_code
    if last != 3:
        raise Failure(f"I5 no loss: the exit code of the crash is told as {last}")


async def _delete(made: World) -> None:
    await made.delete("victim")
    await made.gone("victim")


async def _file(made: World) -> None:
    directory = made.folder / "state/manifests"
    fresh = directory / ".file.yaml"
    await asyncio.to_thread(fresh.write_text, json.dumps(pod("filed")))
    await asyncio.to_thread(fresh.rename, directory / "file.yaml")
    await made.ready("filed")


async def _unfile(made: World) -> None:
    await asyncio.to_thread((made.folder / "state/manifests/file.yaml").unlink)
    await made.gone("filed")


async def _orphan(made: World) -> None:
    labels = {UID_LABEL: "nobody", "io.kubernetes.pod.name": "lost"}
    box = cri.PodSandboxStatus(
        id="orphan".ljust(64, "0"),
        metadata=cri.PodSandboxMetadata(name="lost", namespace="default", uid="nobody"),
        state=cri.SANDBOX_READY,
        labels=labels,
        network=cri.PodSandboxNetworkStatus(ip="10.9.99.1"),
    )
    made.fake.sandboxes[box.id] = box

    async def removed() -> bool:
        await made.service.revive()
        return box.id not in made.fake.sandboxes

    await until(removed, "the orphan is removed", 30.0)


_ACTS: dict[str, Act] = {
    "apply": _apply,
    "crash": _crash,
    "change": _change,
    "delete": _delete,
    "file": _file,
    "unfile": _unfile,
    "orphan": _orphan,
}


async def judge(made: World, before: FakeCri) -> None:
    """Check the invariants after the story. Raises `Failure` with the first that does not hold."""
    await made.clean()
    _judge_runtime(made, before)
    await judge_order(made)
    judge_bounds((await made.audit()).process, CAPS)
    judge_folders(made.folder / "state", 1)
    if mounts := mounting.mounts_below(made.folder):
        raise Failure(f"I4 no leak: still mounted: {mounts}")
    judge_silence(made)
    took = await made.service.terminate()
    if took > 8.0:
        raise Failure(f"SIGTERM took {took:.1f} s")


def _judge_runtime(made: World, before: FakeCri) -> None:
    fake = made.fake
    if fake.violations:
        raise Failure(f"I3 at most one: {fake.violations}")
    starts = [entry for entry in fake.history if entry[0] == "start"]
    twice = [entry for entry, count in Counter(starts).items() if count > 1]
    if twice:
        raise Failure(f"I3 at most one: started twice: {twice}")
    for key, (container, _) in before.containers.items():
        after = fake.containers.get(key)
        if after is None or after[0] != container:
            raise Failure("I1 continuity: the bystander is not the same container any more")
    if set(fake.sandboxes) != set(before.sandboxes) or set(fake.containers) != set(before.containers):
        raise Failure(f"I4 no leak: the runtime holds {list(fake.sandboxes)} {list(fake.containers)}")


class KubeletMatrix:
    """The instants of the kubelet's story, and how one of them is run."""

    name = "kubelet"
    acts: Mapping[str, Act] = _ACTS
    # The acts that are left out unless the kill comes in one of them.
    rare: tuple[str, ...] = ("orphan",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = FakeCri()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED

    async def instants(self) -> list[tuple[str, int]]:
        """Go through the story once without kills; return the instants that it passed, in order."""
        self._before = await prepare(self._folder / "prepared")
        log = self._folder / "instants.log"
        async with self._begin("list") as made:
            await made.service.start(f"*=log({log})")
            await self._tell(made, "")
            await self._judge(made)
        return enumerate_instants(log.read_text().split(), OCCURRENCES)

    @asynccontextmanager
    async def _begin(self, name: str) -> AsyncIterator[World]:
        folder = self._folder / name
        folder.mkdir(parents=True)
        await asyncio.to_thread(
            shutil.copytree, self._folder / "prepared/state", folder / "state", dirs_exist_ok=True
        )
        fake = FakeCri(IMAGE, pullable=(PULLED,))  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
        fake.copy_from(self._before)
        async with world(folder, fake) as made:
            yield made
        for path in reversed(mounting.mounts_below(folder)):
            mounting.unmount(Path(path))
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _tell(self, made: World, instant: str) -> None:
        """Go through the story."""
        for name, act in self.acts.items():
            if not instant or name not in self.rare or instant.startswith(name):
                await act(made)

    async def _judge(self, made: World) -> None:
        """Check the invariants after the story."""
        await judge(made, self._before)

    async def run(self, instant: str, occurrence: int) -> bool:
        """Kill at one instant. Returns whether it was reached; raises `Failure`."""
        off = f"{occurrence - 1}*off->" if occurrence > 1 else ""
        async with self._begin(f"{instant}-{occurrence}") as made:
            await made.service.start(f"{instant}={off}1*kill->off")
            await self._tell(made, instant)
            await self._judge(made)
            return made.service.killed_itself
