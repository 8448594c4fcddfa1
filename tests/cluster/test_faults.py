"""The control plane goes away, forgets, refuses, cuts, repeats itself: nothing is lost, nothing restarts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.cluster.objects import marks, pod
from tests.lab.apifaults import ApiFaults, expired, resumed, too_many, watches
from tests.lab.cluster import Cluster, cluster, until
from tests.lab.dockerd import EngineUnavailable

pytestmark = marks
# How long the control plane stays away at least; the suite waits for a restart alone.
AWAY_SECONDS = float(os.environ.get("TRIPOD_AWAY_SECONDS", "0"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harmed() -> AsyncIterator[Cluster]:
    """Run a node whose kubelet asks through a proxy that harms."""
    try:
        async with cluster("harmed", faults=True) as found:
            yield found
    except EngineUnavailable as error:
        pytest.skip(str(error))


@pytest_asyncio.fixture(loop_scope="session")
async def faults(harmed: Cluster) -> AsyncIterator[ApiFaults]:
    """Do no harm, before and after each test."""
    found = harmed.nodes["harmed"].faults
    assert found is not None
    found.heal()
    yield found
    found.heal()
    await found.back()


def quiet(name: str, *command: str, **more: Any) -> dict[str, Any]:
    """Write a pod that needs nothing of the API server."""
    made = pod(name, *command, **more)
    made["spec"]["automountServiceAccountToken"] = False
    return made


async def identity(made: Cluster, name: str) -> tuple[str, int, str]:
    """Return what changes when a container starts anew: its id, its restarts, when it started."""
    status = (await made.pod(name))["status"]["containerStatuses"][0]
    return status["containerID"], status["restartCount"], status["state"]["running"]["startedAt"]


async def churn(made: Cluster, names: list[str]) -> None:
    """Make pods, and end every second one."""
    await made.apply(*(quiet(name) for name in names))
    await made.kubectl("delete", "pod", "--wait=false", *names[::2])


async def settled(made: Cluster, names: list[str], seconds: float = 90) -> None:
    """Wait until pods are as `churn` wants them, at the API server and at the engine."""
    engine = made.nodes["harmed"].engine

    async def as_wanted() -> bool:
        found = {each["metadata"]["name"]: each for each in await made.pods()}
        ready = [_ready(found[name]) for name in names[1::2] if name in found]
        return not any(name in found for name in names[::2]) and ready == [True] * len(names[1::2])

    await until(as_wanted, f"{names} are settled\n{made.logs()}", seconds)
    running = await asyncio.to_thread(
        engine.output, "ps", "--format", '{{.Label "io.kubernetes.pod.name"}} {{.Label "io.tripod.kind"}}'
    )
    apps = sorted(line.split()[0] for line in running.splitlines() if line.endswith(" container"))
    assert [name for name in apps if name in names] == sorted(names[1::2])


def _ready(found: dict[str, Any]) -> bool:
    conditions = found["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


async def test_watches_that_are_cut_every_second_lose_nothing(harmed: Cluster, faults: ApiFaults) -> None:
    """Each is resumed where it was; what runs goes on."""
    await harmed.apply(quiet("steady"))
    await harmed.ready("steady")
    before = await identity(harmed, "steady")
    faults.cut_watches_seconds = 1.0

    names = [f"cut-{number}" for number in range(6)]
    await churn(harmed, names)
    await settled(harmed, names)

    assert faults.cut_count > 3
    assert await identity(harmed, "steady") == before
    await harmed.delete("pod/steady", *(f"pod/{name}" for name in names))


async def test_events_sent_twice_and_in_the_wrong_order_do_no_harm(
    harmed: Cluster, faults: ApiFaults
) -> None:
    """The newest version of an object counts."""
    begun = faults.reordered_count
    faults.duplicate = faults.reorder = True

    names = [f"order-{number}" for number in range(6)]
    await churn(harmed, names)
    await settled(harmed, names)

    assert faults.reordered_count > begun
    assert [(await identity(harmed, name))[1] for name in names[1::2]] == [0, 0, 0]
    await harmed.delete(*(f"pod/{name}" for name in names))


async def test_a_storm_of_429_delays_and_loses_nothing(harmed: Cluster, faults: ApiFaults) -> None:
    """Whoever is told to come again, comes again, and not before it is time."""
    await harmed.apply(quiet("steady"))
    await harmed.ready("steady")
    before = await identity(harmed, "steady")
    begun = faults.refused_count
    faults.refuse(too_many(retry_after_seconds=1), times=40)

    names = [f"storm-{number}" for number in range(4)]
    await churn(harmed, names)
    await settled(harmed, names)

    assert faults.refused_count > begun
    assert await identity(harmed, "steady") == before
    await harmed.delete("pod/steady", *(f"pod/{name}" for name in names))


async def test_a_watch_that_is_too_late_lists_again(harmed: Cluster, faults: ApiFaults) -> None:
    """410 at the door, and in the stream: what happened meanwhile is found by the list."""
    await harmed.apply(quiet("steady"))
    await harmed.ready("steady")
    before = await identity(harmed, "steady")
    begun = faults.refused_count
    faults.cut_watches_seconds = 1.0
    faults.refuse(expired(), times=3, when=resumed)
    faults.fail_watches(expired(), times=3)

    names = [f"late-{number}" for number in range(4)]
    await churn(harmed, names)
    await until(lambda: _reached(faults, begun + 6), "all refusals came", 60)
    await settled(harmed, names)

    assert await identity(harmed, "steady") == before
    await harmed.delete("pod/steady", *(f"pod/{name}" for name in names))


async def _reached(faults: ApiFaults, count: int) -> bool:
    return faults.refused_count >= count


@pytest.mark.timeout(300 + AWAY_SECONDS)
async def test_away_from_the_control_plane_pods_go_on_and_everything_is_told_later(
    harmed: Cluster, faults: ApiFaults
) -> None:
    """A container that ends is restarted, a pod that was deleted meanwhile ends when it is heard of."""
    crashes = quiet("crashes", "sh", "-c", "sleep 3; exit 1")
    await harmed.apply(quiet("steady"), quiet("goes"), crashes)
    await harmed.ready("steady", "goes")
    before = await identity(harmed, "steady")
    engine = harmed.nodes["harmed"].engine

    back = asyncio.get_running_loop().time() + AWAY_SECONDS
    await faults.away()
    await harmed.kubectl("delete", "pod", "goes", "--wait=false")
    await harmed.apply(quiet("comes"))
    restarts = (await harmed.pod("crashes"))["status"]["containerStatuses"][0]["restartCount"]
    wanted = ("ps", "-aq", "--filter", "label=io.kubernetes.pod.name=crashes")
    seen: set[str] = set()

    async def restarted() -> bool:
        seen.update((await asyncio.to_thread(engine.output, *wanted)).split())
        # The sandbox, and more containers than were told of.
        return len(seen) > int(restarts) + 2

    await until(restarted, "it is restarted without a control plane", 60)
    await until(lambda: _passed(back), "the time passes", AWAY_SECONDS + 5)
    await faults.back()

    await harmed.ready("comes")
    await until(lambda: _gone(harmed, "goes"), "the deleted pod is gone", 60)
    after = (await harmed.pod("crashes"))["status"]["containerStatuses"][0]["restartCount"]
    assert after > restarts
    assert await identity(harmed, "steady") == before
    await harmed.delete("pod/steady", "pod/comes", "pod/crashes")


async def _gone(made: Cluster, name: str) -> bool:
    return name not in {each["metadata"]["name"] for each in await made.pods()}


async def test_a_restarted_and_compacted_control_plane_is_followed(
    harmed: Cluster, faults: ApiFaults
) -> None:
    """The versions that the node knows are gone with the API server's memory."""
    await harmed.apply(quiet("steady"))
    await harmed.ready("steady")
    before = await identity(harmed, "steady")

    await harmed.plane.end("kube-apiserver")
    await harmed.plane.compact()
    await harmed.plane.start("kube-apiserver")
    names = [f"compact-{number}" for number in range(4)]
    await churn(harmed, names)
    await settled(harmed, names)

    assert await identity(harmed, "steady") == before
    await until(lambda: harmed.node_ready("harmed"), "the node is ready")
    await harmed.delete("pod/steady", *(f"pod/{name}" for name in names))


async def test_a_kubelet_that_was_killed_starts_nothing_anew(harmed: Cluster, faults: ApiFaults) -> None:
    """Nor while the control plane is away: the pods that it accepted last are its own."""
    await harmed.apply(quiet("steady"))
    await harmed.ready("steady")
    before = await identity(harmed, "steady")
    kubelet = harmed.nodes["harmed"].services["kubelet"]

    await faults.away()
    await kubelet.kill()
    await kubelet.start()
    await faults.back()
    await harmed.apply(quiet("next"))
    await harmed.ready("next")

    assert await identity(harmed, "steady") == before
    await harmed.delete("pod/steady", "pod/next")


async def test_the_steady_state_asks_little(harmed: Cluster, faults: ApiFaults) -> None:
    """A lease every 10 s, watches that stay, and no lists: as the original does."""
    await harmed.apply(quiet("steady"))
    await harmed.ready("steady")
    seconds = 25.0
    # What a pod's start still sends has been sent when the lease is renewed next.
    renewed = faults.count(_renews)
    await until(lambda: _counted(faults, renewed + 1), "the lease is renewed", 30)
    begin = len(faults.asked)
    end = asyncio.get_running_loop().time() + seconds
    await until(lambda: _passed(end), "some time passes", seconds + 5)
    asked = faults.asked[begin:]

    assert 2 <= sum(_renews(each) for each in asked) <= 3
    assert [
        each for each in asked if each.method == "GET" and not watches(each) and "/nodes/" not in each.path
    ] == []
    assert len(asked) <= 8, asked
    await harmed.delete("pod/steady")


def _renews(asked: Any) -> bool:
    return bool(asked.method in ("PUT", "PATCH") and "/leases/" in asked.path)


async def _counted(faults: ApiFaults, count: int) -> bool:
    return faults.count(_renews) >= count


async def _passed(end: float) -> bool:
    return asyncio.get_running_loop().time() >= end
