"""How the node registers, and how often it says what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from services.kubelet.core.kube_node import Registration
from services.kubelet.core.node import NodeCondition, NodeStatus
from services.kubelet.core.node_images import Image
from services.kubelet.loops.cluster_node import NodeRegistrar
from tests.kubelet.cluster_world import NODE, World, a_world

pytestmark = pytest.mark.asyncio
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Registering:
    """A registrar of a node that can be made unready."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ready = True
        self.images: tuple[Image, ...] | None = None
        wanted = Registration(NODE, {"kubernetes.io/hostname": NODE}, ({"key": "a", "effect": "NoSchedule"},))
        self.registrar = NodeRegistrar(world.api, wanted, self.status, world.clock)
        self.events: list[str] = []
        self.registrar.on_event = lambda event: self.events.append(event.reason)

    def status(self) -> NodeStatus:
        """Return what the node says of itself."""
        reason = "KubeletReady" if self.ready else "KubeletNotReady"
        return NodeStatus(
            NODE,
            {"cpu": "2"},
            {"cpu": "2"},
            (("InternalIP", "192.0.2.1"),),
            {},
            "",
            "",
            (NodeCondition("Ready", self.ready, reason, "", NOW),),
            images=self.images,
        )

    def ready_at_api(self) -> str:
        """Return what the API knows of the node's readiness."""
        node = self.world.server.get("nodes", "", NODE) or {}
        conditions = node.get("status", {}).get("conditions", ())
        return next((c["status"] for c in conditions if c["type"] == "Ready"), "")


@asynccontextmanager
async def registering(*, faults: int = 0) -> AsyncIterator[Registering]:
    """Run a registrar for a block."""
    async with a_world() as world:
        if faults:
            world.server.refuse(500, times=faults)
        made = Registering(world)
        async with world.running(made.registrar.run):
            yield made


async def test_a_node_is_made_with_labels_and_taints() -> None:
    """Then it has a lease and a status."""
    async with registering() as made:
        await made.world.until(lambda: made.ready_at_api() == "True")
        node = made.world.server.get("nodes", "", NODE)
        await made.world.until(lambda: made.world.server.all("leases"))

        assert node is not None
        assert node["metadata"]["labels"] == {"kubernetes.io/hostname": NODE}
        assert node["spec"]["taints"] == [{"key": "a", "effect": "NoSchedule"}]
        assert made.world.server.all("leases")[0]["spec"]["holderIdentity"] == NODE


async def test_a_node_that_is_there_is_taken_over() -> None:
    """What others wrote stays: labels, taints, the pod CIDR."""
    async with a_world() as world:
        labels, spec = {"mine": "1"}, {"podCIDR": "10.5.0.0/24", "unschedulable": True}
        world.server.put("nodes", {"metadata": {"name": NODE, "labels": labels}, "spec": spec})
        made = Registering(world)
        async with world.running(made.registrar.run):
            await world.until(lambda: made.ready_at_api() == "True")

            node = world.server.get("nodes", "", NODE)
            assert node is not None
            assert node["metadata"]["labels"] == {"mine": "1", "kubernetes.io/hostname": NODE}
            assert node["spec"] == spec


@asynccontextmanager
async def restarted() -> AsyncIterator[Registering]:
    """Run a registrar whose Node is ready at the API while nothing here has answered yet."""
    async with a_world() as world:
        ready = {"type": "Ready", "status": "True"}
        world.server.put("nodes", {"metadata": {"name": NODE}, "status": {"conditions": [ready]}})
        made = Registering(world)
        made.ready = False
        async with world.running(made.registrar.run):
            await world.until(lambda: world.server.count("create", "leases"))
            yield made


async def test_a_restart_makes_no_node_unready() -> None:
    """Its pods would leave their services meanwhile."""
    async with restarted() as made:
        told = []

        def passed(seconds: float) -> bool:
            told.append(made.ready_at_api())
            return made.world.clock.monotonic() - began >= seconds

        began = made.world.clock.monotonic()
        await made.world.until(lambda: passed(5))
        made.ready = True
        await made.world.until(lambda: passed(6) and made.world.server.count("patch", "nodes/status") > 0)

        assert set(told) == {"True"}


async def test_a_node_that_stays_unready_after_a_restart_tells_so() -> None:
    """Within ten seconds."""
    async with restarted() as made:
        began = made.world.clock.monotonic()
        await made.world.until(lambda: made.ready_at_api() == "False")

        assert made.world.clock.monotonic() - began <= 11


@pytest.mark.process
async def test_registration_is_tried_until_the_api_takes_it() -> None:
    """A node may start before its control plane."""
    async with registering(faults=20) as made:
        await made.world.until(lambda: made.ready_at_api() == "True", 1.0)


@pytest.mark.process
async def test_the_lease_is_renewed_each_ten_seconds_and_an_idle_status_each_five_minutes() -> None:
    """Half an hour of an idle node: 180 renewals, 6 statuses, and a watch that ends now and then."""
    async with registering() as made:
        world = made.world
        await world.until(lambda: made.ready_at_api() == "True" and world.server.count("create", "leases"))
        await world.clock.advance(1.0)
        world.server.seen.clear()

        for count in range(1, 181):
            await world.clock.advance(10.0)
            await world.quiet(lambda count=count: world.server.count("patch", "leases") >= count)  # type: ignore[misc]

        assert world.server.count("patch", "leases") == 180
        assert world.server.count("patch", "nodes/status") in (5, 6)
        assert world.server.count() <= 180 + 6 + 6


async def test_what_an_older_api_does_not_know_is_told_once() -> None:
    """Its answer lacks it each time; what somebody else changes is put right none the less."""
    async with registering() as made:
        world = made.world
        world.server.unknown.add("images")
        await world.until(lambda: made.ready_at_api() == "True" and world.server.count("create", "leases"))
        made.images = (Image("a", 1000, tags=("app:1",)),)
        for count in range(1, 11):
            await world.clock.advance(10.0)
            await world.quiet(lambda count=count: world.server.count("patch", "leases") >= count)  # type: ignore[misc]
        told = world.server.count("patch", "nodes/status")

        node = world.server.get("nodes", "", NODE)
        assert node is not None
        world.server.put("nodes", {**node, "status": {**node["status"], "capacity": {"cpu": "3"}}})
        await world.until(lambda: world.server.count("patch", "nodes/status") > told)

        # The first, and the one with the images.
        assert told == 2
        restored = world.server.get("nodes", "", NODE)
        assert restored is not None
        assert restored["status"]["capacity"] == {"cpu": "2"}


async def test_a_change_is_told_at_the_next_look() -> None:
    """Within ten seconds, and a node that is ready again is told at once."""
    async with registering() as made:
        await made.world.until(lambda: made.ready_at_api() == "True")
        began = made.world.clock.monotonic()

        made.ready = False
        await made.world.until(lambda: made.ready_at_api() == "False")
        unready = made.world.clock.monotonic()
        made.ready = True
        await made.world.until(lambda: made.ready_at_api() == "True")

        assert unready - began <= 11
        assert made.world.clock.monotonic() - unready <= 2


async def test_changes_are_events_once_they_are_told() -> None:
    """What the API refuses to hear is told when it hears it, and then once."""
    async with registering() as made:
        world = made.world
        await world.until(lambda: made.ready_at_api() == "True")

        made.ready = False
        world.server.refuse(500, times=8, resource="nodes/status")
        await world.until(lambda: made.ready_at_api() == "False", 1.0)
        made.ready = True
        await world.until(lambda: made.ready_at_api() == "True")
        await world.clock.advance(60.0)

        assert not world.server.faults
        assert made.events == ["NodeReady", "NodeNotReady", "NodeReady"]


async def test_a_cordon_is_an_event() -> None:
    """As soon as the watch tells it; one from before this run, too."""
    async with a_world() as world:
        world.server.put("nodes", {"metadata": {"name": NODE}, "spec": {"unschedulable": True}})
        made = Registering(world)
        async with world.running(made.registrar.run):
            await world.until(lambda: made.ready_at_api() == "True" and world.server.stream_count)
            node = world.server.get("nodes", "", NODE)
            assert node is not None
            world.server.put("nodes", {**node, "spec": {}})
            await world.until(lambda: len(made.events) == 3)

            assert made.events == ["NodeNotSchedulable", "NodeReady", "NodeSchedulable"]


async def test_a_node_that_somebody_deleted_registers_again() -> None:
    """Its lease, which went with it, too."""
    async with registering() as made:
        world = made.world
        await world.until(lambda: made.ready_at_api() == "True" and world.server.all("leases"))

        world.server.remove("nodes", "", NODE)
        world.server.remove("leases", "kube-node-lease", NODE)
        await world.until(lambda: made.ready_at_api() == "True" and world.server.all("leases"), 0.5)

        assert world.server.count("create", "nodes") == 2


async def test_a_lease_that_cannot_be_renewed_is_tried_five_times() -> None:
    """A moment's fault must not cost the node its lease."""
    async with registering() as made:
        world = made.world
        await world.until(lambda: made.ready_at_api() == "True" and world.server.all("leases"))
        before = world.server.all("leases")[0]["spec"]["renewTime"]
        world.server.refuse(500, times=4, resource="leases")

        await world.until(lambda: world.server.all("leases")[0]["spec"]["renewTime"] != before, 0.2)

        assert not world.server.faults
        assert world.clock.monotonic() < 20


async def test_a_lease_of_a_run_before_is_renewed_at_once() -> None:
    """It may be about to end."""
    async with a_world() as world:
        meta = {"name": NODE, "namespace": "kube-node-lease"}
        old = {"holderIdentity": NODE, "renewTime": "2025-01-01T00:00:00.000000Z"}
        world.server.put("leases", {"metadata": meta, "spec": old})
        made = Registering(world)
        async with world.running(made.registrar.run):
            await made.registrar.registered.wait()
            await world.quiet(lambda: world.server.all("leases")[0]["spec"]["renewTime"] != old["renewTime"])

        assert world.clock.monotonic() < 10
