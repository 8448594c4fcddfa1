"""How statuses reach the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from services.common import workqueue
from services.common.watch import WatchHub
from services.kubelet.core.model import PodUid
from services.kubelet.core.status import PodCondition, PodPhase, PodStatus
from services.kubelet.loops.cluster_pods import ClusterPods
from services.kubelet.loops.cluster_status import StatusReporter
from tests.kubelet.cluster_world import NODE, World, a_world, an_api_pod

pytestmark = pytest.mark.asyncio
UID = PodUid("u-a")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_status(phase: PodPhase = PodPhase.RUNNING, *, ip: str = "10.0.0.1", ready: bool = True) -> PodStatus:
    """Make a status."""
    condition = PodCondition("Ready", ready, since=NOW)
    return PodStatus(UID, "default", "a", phase, conditions=(condition,), pod_ips=(ip,), host_ip="192.0.2.1")


class Reporting:
    """A source with one pod, and a reporter of its status."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hub: WatchHub[PodStatus] = WatchHub("run")
        self.pods = ClusterPods(
            world.api, NODE, world.memory, world.clock, admit=lambda pod, others: None, run_id="run"
        )
        self.reporter = StatusReporter(world.api, self.pods, self.hub, world.clock)
        self.pods.on_moved = self.reporter.look

    def at_api(self) -> dict[str, object]:
        """Return the status that the API has."""
        found = self.world.server.get("pods", "default", "a")
        return dict(found["status"]) if found else {}

    def sent(self) -> list[dict[str, object]]:
        """Return what was sent, in order."""
        return [s.body["status"] for s in self.world.server.seen if s.resource == "pods/status"]


@asynccontextmanager
async def reporting() -> AsyncIterator[Reporting]:
    """Run both for a block."""
    async with a_world() as world:
        made = Reporting(world)
        world.server.put("pods", an_api_pod("a", UID))
        async with world.running(made.pods.run, made.reporter.run):
            await world.until(made.pods.certain)
            yield made


async def test_a_status_reaches_the_api_once() -> None:
    """What the API has already is not sent again."""
    async with reporting() as made:
        made.hub.upsert(UID, a_status())
        await made.world.until(lambda: made.at_api().get("phase") == "Running")
        made.hub.upsert(UID, a_status())
        made.reporter.look(UID)
        await made.world.clock.advance(1)
        await asyncio.sleep(0.05)

        assert len(made.sent()) == 1


async def test_the_newest_status_wins() -> None:
    """Statuses that came while one was under way are not sent one by one."""
    async with reporting() as made:
        for number in range(2, 50):
            made.hub.upsert(UID, a_status(ip=f"10.0.0.{number}"))
        await made.world.until(lambda: made.at_api().get("podIP") == "10.0.0.49")

        assert len(made.sent()) <= 3


async def test_a_status_that_cannot_be_sent_is_sent_later() -> None:
    """Nothing is lost while the API is away, and the newest is what it hears then."""
    async with reporting() as made:
        made.world.server.refuse(503, times=6, resource="pods/status")
        made.hub.upsert(UID, a_status())
        await made.world.until(lambda: len(made.sent()) >= 2)
        made.hub.upsert(UID, a_status(ready=False))
        await made.world.until(lambda: made.at_api().get("phase") == "Running", 0.5)

        conditions = made.at_api()["conditions"]
        assert [c["status"] for c in conditions if c["type"] == "Ready"] == ["False"]  # type: ignore[attr-defined]


async def test_what_somebody_else_wrote_over_is_put_right() -> None:
    """The node alone knows how its pods fare; conditions of others stay."""
    async with reporting() as made:
        made.hub.upsert(UID, a_status())
        await made.world.until(lambda: made.at_api().get("podIP") == "10.0.0.1")
        value = made.world.server.get("pods", "default", "a")
        assert value is not None
        gate = {"type": "example.com/gate", "status": "True"}
        status = {**value["status"], "podIP": "6.6.6.6", "conditions": [*value["status"]["conditions"], gate]}

        made.world.server.put("pods", {**value, "status": status})
        await made.world.until(lambda: made.at_api().get("podIP") == "10.0.0.1")

        assert gate in made.at_api()["conditions"]  # type: ignore[operator]


async def test_another_pod_of_the_name_is_not_meant() -> None:
    """The UID is a precondition."""
    async with reporting() as made:
        made.world.server.silent = True
        made.world.server.remove("pods", "default", "a")
        made.world.server.put("pods", an_api_pod("a", "u-b"))

        made.hub.upsert(UID, a_status())
        await made.world.until(lambda: len(made.sent()) == 1)
        await asyncio.sleep(0.05)

        assert made.at_api() == {"phase": "Pending"}


async def test_nothing_is_kept_of_pods_that_are_gone() -> None:
    """Neither of one that was refused, which has no status here, nor of one that ran."""
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "v"}}
    async with reporting() as made:
        server = made.world.server
        made.hub.upsert(UID, a_status())
        server.put("pods", an_api_pod("b", "u-b", spec={"volumes": [volume]}))
        await made.world.until(
            lambda: (found := server.get("pods", "default", "b")) and found["status"]["phase"] == "Failed"
        )
        await made.world.until(lambda: made.at_api().get("phase") == "Running")
        server.remove("pods", "default", "b")
        server.remove("pods", "default", "a")
        await made.world.until(lambda: made.pods.at_api(PodUid("u-b")) is None)
        await made.world.until(lambda: (pod := made.pods.pod(UID)) and pod.deletion_time)
        await made.pods.finalize(UID)
        made.hub.delete(UID)

        await made.world.until(lambda: not made.reporter._answers and not made.reporter._turns)


async def test_a_status_is_told_at_once_when_the_api_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it waits for its next try by then."""
    monkeypatch.setattr(workqueue, "_FIRST_RETRY_SECONDS", 60.0)
    async with reporting() as made:
        await made.world.server.stop()
        made.hub.upsert(UID, a_status())
        await made.world.until(lambda: made.reporter._queue.next_seconds(UID))

        await made.world.server.start()

        await made.world.until(lambda: made.at_api().get("phase") == "Running")
