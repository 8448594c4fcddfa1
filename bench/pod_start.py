"""How long a pod's start takes beside the bare engine calls that it consists of.

A pair is a pod of one container without probes, from the call of `ApplyObjects` to
the watch event that says Ready, and the same two containers created and started by
bare calls of the engine's API: the same configurations, as the engine tells them of
the pod's own. Pairs are interleaved; the image is there.

Bars: the median of the pairs' differences is at most 60 ms, of 40 pairs at least.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import docker
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from bench import rest
from bench.report import Bar, Result, Row, percentile
from services.common.grpcclient import call, stream
from tests.lab.node import Node, node, pod

PAIRS = 40
WARM_UP = 3
LIMIT_MS = 60.0
_PATIENCE_SECONDS = 60.0


class Starts:
    """Applies pods to a node and notes when the watch tells of them."""

    def __init__(self, made: Node) -> None:
        self._node = made
        self._objects = object_grpc.ObjectServiceStub(made.channel)
        self._pods = pod_grpc.PodServiceStub(made.channel)
        self._ready: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._moved = asyncio.Condition()

    async def follow(self) -> None:
        """Note what the watch tells, until cancelled."""
        async with stream(self._pods.WatchPods, pod_pb.WatchPodsRequest()) as answers:
            async for answer in answers:
                async with self._moved:
                    self._take(answer)
                    self._moved.notify_all()

    def _take(self, answer: pod_pb.WatchPodsResponse) -> None:
        if answer.WhichOneof("event") == "pod_upserted":
            self._names[answer.pod_upserted.uid] = answer.pod_upserted.name
            if answer.pod_upserted.ready:
                self._ready.setdefault(answer.pod_upserted.name, time.perf_counter())
        elif answer.WhichOneof("event") == "pod_deleted_uid":
            self._names.pop(answer.pod_deleted_uid, None)

    async def start(self, name: str) -> float:
        """Apply a pod; return the seconds until it is Ready."""
        text = json.dumps(pod(name, grace_seconds=0)).encode()
        begin = time.perf_counter()
        await call(
            self._objects.ApplyObjects, object_pb.ApplyObjectsRequest(manifest=text), deadline_seconds=30
        )
        async with asyncio.timeout(_PATIENCE_SECONDS), self._moved:
            await self._moved.wait_for(lambda: name in self._ready)
        return self._ready[name] - begin

    async def delete(self, name: str) -> None:
        """Delete a pod and wait until nothing is left."""
        ref = object_pb.ObjectRef(kind="Pod", namespace="default", name=name)
        await call(
            self._objects.DeleteObjects, object_pb.DeleteObjectsRequest(refs=[ref]), deadline_seconds=30
        )
        async with asyncio.timeout(_PATIENCE_SECONDS), self._moved:
            await self._moved.wait_for(lambda: name not in self._names.values())


class Bare:
    """The bare calls for the same two containers."""

    def __init__(self, host: str, stand_in: Path) -> None:
        self._api = docker.APIClient(base_url=host, version="auto")
        self._stand_in = stand_in
        self._sandbox: dict[str, Any] = {}
        self._container: dict[str, Any] = {}

    def learn(self) -> None:
        """Take the configurations of the pod that runs now."""
        for item in self._api.containers():
            inspected = self._api.inspect_container(item["Id"])
            if inspected["Config"]["Labels"]["io.tripod.kind"] == "podsandbox":
                self._sandbox = self._config(inspected)
            else:
                self._container = self._config(inspected)

    def _config(self, inspected: Mapping[str, Any]) -> dict[str, Any]:
        config, host_config = dict(inspected["Config"]), dict(inspected["HostConfig"])
        # A container in another's network takes its name from there.
        if host_config["NetworkMode"].startswith("container:"):
            config.pop("Hostname", None)
        # The pod's own file goes with the pod.
        for mount in host_config.get("Mounts") or []:
            mount["Source"] = str(self._stand_in)
        return {**config, "Labels": {}, "HostConfig": host_config}

    def start(self, name: str) -> tuple[float, tuple[str, str]]:
        """Create and start both; return the seconds and their ids."""
        begin = time.perf_counter()
        sandbox = self._create(f"{name}-sandbox", self._sandbox)
        host_config = dict(self._container["HostConfig"])
        for key in ("NetworkMode", "IpcMode", "PidMode"):
            if str(host_config.get(key, "")).startswith("container:"):
                host_config[key] = f"container:{sandbox}"
        container = self._create(f"{name}-app", {**self._container, "HostConfig": host_config})
        return time.perf_counter() - begin, (container, sandbox)

    def _create(self, name: str, config: dict[str, Any]) -> str:
        made = str(self._api.create_container_from_config(config, name)["Id"])
        self._api.start(made)
        return made

    def remove(self, ids: tuple[str, str]) -> None:
        """Remove both."""
        for container_id in ids:
            self._api.remove_container(container_id, force=True)

    def close(self) -> None:
        """End the connection."""
        self._api.close()


@asynccontextmanager
async def _followed(made: Node) -> AsyncIterator[Starts]:
    starts = Starts(made)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(starts.follow())
        yield starts
        following.cancel()


async def measure(pairs: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of our starts and of the bare ones, pair by pair."""
    ours: list[float] = []
    bare: list[float] = []
    async with node() as made, _followed(made) as starts:
        stand_in = made.folder / "stand-in"
        stand_in.touch()
        floor = Bare(made.engine.host, stand_in)
        loop = asyncio.get_running_loop()
        for number in range(-WARM_UP, pairs):
            seconds = await starts.start(f"pod{number}")
            await loop.run_in_executor(None, floor.learn)
            await starts.delete(f"pod{number}")
            bare_seconds, ids = await loop.run_in_executor(None, partial(floor.start, f"bare{number}"))
            await loop.run_in_executor(None, floor.remove, ids)
            if number >= 0:
                ours.append(seconds * 1000)
                bare.append(bare_seconds * 1000)
        floor.close()
    return ours, bare


def run() -> Result:
    """Measure on an engine of our own."""
    ours, bare = asyncio.run(measure(PAIRS))
    overheads = [mine - floor for mine, floor in zip(ours, bare, strict=True)]
    rows = [
        Row(f"apply to Ready, p{p}", percentile(ours, p), "ms", "bare engine calls", percentile(bare, p))
        for p in (50, 90)
    ]
    rows += [Row(f"overhead of a pair, p{p}", percentile(overheads, p), "ms") for p in (10, 50, 90)]
    rows += [rest.rested()]
    return Result(
        rows,
        [
            Bar("overhead of a pair, p50", percentile(overheads, 50), LIMIT_MS, "ms"),
            Bar("pairs", len(overheads), 40, "", at_least=True),
        ],
        ["Both on an engine of the benchmark's own, in turn."],
    )
