"""How static pods are shown at the API."""

from __future__ import annotations

import pytest

from services.kubelet.core.model import Pod, PodUid
from services.kubelet.loops.cluster_pods import ClusterPods
from services.kubelet.loops.static_pods import MergedPods, Mirrors, StaticPods
from tests.builders import a_pod
from tests.fakes.pod_source import ValueSource
from tests.kubelet.cluster_world import NODE, World, a_world, an_api_pod

pytestmark = pytest.mark.asyncio


class Node:
    """Static pods, their mirrors, and the pods of the API. `uid` is the Node's, "" before it is there."""

    def __init__(self, world: World, *pods: Pod) -> None:
        self.store = ValueSource(*pods)
        self.static = StaticPods(self.store, NODE)
        self.pods = ClusterPods(
            world.api, NODE, world.memory, world.clock, admit=lambda pod, others: None, run_id="run"
        )
        self.uid = "uid-n"
        self.mirrors = Mirrors(
            world.api, self.static, self.pods, world.clock, node=NODE, node_uid=lambda: self.uid
        )
        self.pods.on_mirror = self.mirrors.look


async def test_a_mirror_is_made_when_the_node_is_there() -> None:
    """And at once then, whatever came first."""
    async with a_world() as world:
        node = Node(world, a_pod())
        node.uid = ""
        async with world.running(node.pods.run, node.mirrors.run):
            await world.until(node.pods.certain)
            assert world.server.all("pods") == []

            node.uid = "uid-n"
            node.mirrors.look()
            await world.quiet(lambda: world.server.get("pods", "default", f"web-{NODE}"))


async def test_a_mirror_that_shows_nothing_is_deleted() -> None:
    """A file that went while the kubelet was away."""
    async with a_world() as world:
        meta = {"annotations": {"kubernetes.io/config.mirror": "gone"}}
        world.server.put("pods", an_api_pod("old", "u-old", metadata=meta))
        node = Node(world)
        async with world.running(node.pods.run, node.mirrors.run):
            await world.until(lambda: not world.server.all("pods"))


async def test_what_the_api_refuses_is_tried_less_and_less() -> None:
    """A static pod that names a Secret has no mirror, and runs."""
    async with a_world() as world:
        world.server.refuse(403, times=1000, verb="create")
        node = Node(world, a_pod())
        async with world.running(node.pods.run, node.mirrors.run):
            await world.until(lambda: world.clock.monotonic() > 120, 1.0)

            assert 4 <= world.server.count("create") <= 9
            assert [pod.name for pod in node.static.pods()] == [f"web-{NODE}"]


async def test_a_mirror_follows_the_labels_of_its_file() -> None:
    """Services choose a static pod by what its mirror says."""
    async with a_world() as world:
        node = Node(world, a_pod(labels={"app": "old"}))
        async with world.running(node.pods.run, node.mirrors.run):

            def shown() -> str | None:
                found = world.server.get("pods", "default", f"web-{NODE}")
                return found["metadata"]["labels"]["app"] if found else None

            await world.until(lambda: shown() == "old")
            node.store.hub.upsert("uid-1", a_pod(labels={"app": "new"}))

            await world.until(lambda: shown() == "new")
            await world.until(lambda: PodUid("uid-1") in node.pods.mirrors())
            assert world.server.count("create", "pods") == 2


async def test_both_kinds_are_one_source() -> None:
    """Each is forgotten by whoever has it."""
    async with a_world() as world:
        world.server.put("pods", an_api_pod("api", "u-api"))
        node = Node(world, a_pod())
        merged = MergedPods(node.static, node.pods)
        async with world.running(node.pods.run):
            await world.until(node.pods.certain)
            assert {pod.name for pod in merged.pods()} == {f"web-{NODE}", "api"}

            await merged.finalize(PodUid("uid-1"))
            await merged.finalize(PodUid("u-api"))

            assert merged.pods() == []
            assert world.server.all("pods") == []
