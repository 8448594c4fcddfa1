"""A fake API server, a client and a clock for tests of the cluster's loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.common.clock import SystemClock
from services.common.kubeapi import KubeApi
from services.common.kuberequest import Json
from services.kubelet.core.model import ObjectKey, PodUid
from tests.fakes.clock import FakeClock
from tests.fakes.kube_server import KubeServer

NODE = "worker"


@dataclass
class FakeMemory:
    """Obeys `ClusterMemory`, without a disk. `pods` and `objects` are what is kept."""

    pods: dict[PodUid, Json] = field(default_factory=dict)
    objects: dict[ObjectKey, Json] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    async def keep_pods(self, bodies: Mapping[PodUid, Json], gone: Collection[PodUid] = ()) -> None:
        """Keep pods, and forget some."""
        self.pods.update(bodies)
        for uid in gone:
            self.pods.pop(uid, None)

    async def keep_objects(self, bodies: Mapping[ObjectKey, Json | None]) -> None:
        """Keep objects, and forget those of which there is none."""
        for key, body in bodies.items():
            if body is None:
                self.objects.pop(key, None)
            else:
                self.objects[key] = body

    async def keep_fact(self, name: str, value: str) -> None:
        """Keep a fact."""
        self.facts[name] = value


@dataclass
class World:
    """What the tests share. `until` moves the clock in steps, so that waits and retries pass."""

    server: KubeServer
    api: KubeApi
    clock: FakeClock
    memory: FakeMemory = field(default_factory=FakeMemory)

    async def until(self, holds: Callable[[], Any], step_seconds: float = 0.05) -> None:
        """Wait for something to hold, at most ten real seconds."""
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.002)
                await self.clock.advance(step_seconds)

    async def quiet(self, holds: Callable[[], Any]) -> None:
        """Wait for something to hold while the clock stands still."""
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110  # the condition lies behind a wire
                await asyncio.sleep(0.001)

    @asynccontextmanager
    async def running(self, *loops: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Run loops for a block."""

        async def body(loop: Callable[[], Awaitable[None]]) -> None:
            await loop()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(body(loop)) for loop in loops]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    """Serve for a block. The client's own waits are real, those of the loops are the clock's."""
    server = KubeServer()
    await server.start()
    api = KubeApi(server.access(), SystemClock(), agent="test/1", jitter=lambda: 0.0)
    try:
        yield World(server, api, FakeClock())
    finally:
        await api.close()
        await server.stop()


def an_api_pod(name: str = "web", uid: str = "", **values: Any) -> dict[str, Any]:
    """Write a pod as the API has it, bound to the node."""
    meta = {"name": name, "namespace": "default", "generation": 1, **values.pop("metadata", {})}
    if uid:
        meta["uid"] = uid
    spec = {"nodeName": NODE, "containers": [{"name": "app", "image": "app:1"}], **values.pop("spec", {})}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}, **values}
