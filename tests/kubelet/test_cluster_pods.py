"""Which pods of the API are run, and how each of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from services.common.errors import TripodError
from services.common.kuberequest import Json
from services.kubelet.core.kube_resources import PODS
from services.kubelet.core.model import Pod, PodUid
from services.kubelet.loops.cluster_pods import ClusterPods, Refused
from tests.kubelet.cluster_world import NODE, World, a_world, an_api_pod

pytestmark = pytest.mark.asyncio


class Admission:
    """Admits all, or refuses those that are named."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.asked: list[str] = []

    def __call__(self, pod: Pod, others: Sequence[Pod]) -> Refused | None:
        self.asked.append(pod.name)
        return Refused("OutOfcpu", "Pod was rejected: no cpu") if pod.name in self.refused else None


def a_source(world: World, admission: Admission | None = None) -> ClusterPods:
    """Make the source."""
    return ClusterPods(
        world.api, NODE, world.memory, world.clock, admit=admission or Admission(), run_id="run"
    )


@asynccontextmanager
async def following(*pods: Json) -> AsyncIterator[tuple[World, ClusterPods]]:
    """Run a source at a server that has pods."""
    async with a_world() as world:
        for pod in pods:
            world.server.put("pods", dict(pod))
        source = a_source(world)
        async with world.running(source.run):
            await world.until(source.certain)
            yield world, source


async def test_pods_of_the_node_are_run_and_kept() -> None:
    """A pod is on disk before anyone works on it; pods of other nodes are not ours."""
    async with following(an_api_pod("a", "u-a"), an_api_pod("b", "u-b", spec={"nodeName": "other"})) as (
        world,
        source,
    ):
        assert [pod.name for pod in source.pods()] == ["a"]
        assert list(world.memory.pods) == ["u-a"]

        world.server.put("pods", an_api_pod("c", "u-c"))
        await world.until(lambda: source.pod(PodUid("u-c")))

        assert source.take_new(PodUid("u-c"))
        assert not source.take_new(PodUid("u-c"))
        assert not source.take_new(PodUid("u-a"))


async def test_a_status_of_our_own_wakes_nobody() -> None:
    """What the node told is no news to it."""
    async with following(an_api_pod("a", "u-a")) as (world, source):
        before = source.hub.revision
        value = world.server.get("pods", "default", "a")
        assert value is not None

        world.server.put("pods", {**value, "status": {"phase": "Running"}})
        await world.until(
            lambda: (known := source.at_api(PodUid("u-a"))) and known.status["phase"] == "Running"
        )

        assert source.hub.revision == before


async def test_a_deletion_ends_with_a_delete_by_uid() -> None:
    """The API forgets the pod only when nothing of it is left here."""
    async with following(an_api_pod("a", "u-a")) as (world, source):
        reported: list[str] = []

        async def report(uid: PodUid) -> None:
            reported.append(uid)

        source.on_report = report
        await world.api.delete(PODS, "default", "a", grace_seconds=7)
        await world.until(lambda: (pod := source.pod(PodUid("u-a"))) and pod.deletion_time)
        assert source.pod(PodUid("u-a")).deletion_grace_seconds == 7  # type: ignore[union-attr]

        await source.finalize(PodUid("u-a"))

        assert world.server.get("pods", "default", "a") is None
        assert reported == ["u-a"]
        assert world.server.seen[-1].body["preconditions"] == {"uid": "u-a"}
        assert (source.pods(), world.memory.pods) == ([], {})


async def test_a_delete_that_does_not_get_through_is_not_forgotten() -> None:
    """Whoever works on the pod tries again."""
    async with following(an_api_pod("a", "u-a")) as (world, source):
        world.server.refuse(500, times=100, verb="delete")

        with pytest.raises(TripodError):
            await source.finalize(PodUid("u-a"))

        assert source.pod(PodUid("u-a")) is not None


async def test_a_pod_that_was_replaced_is_another_one() -> None:
    """The new pod of the name is not touched when the old one is forgotten."""
    async with following(an_api_pod("a", "u-1")) as (world, source):
        world.server.remove("pods", "default", "a")
        world.server.put("pods", an_api_pod("a", "u-2"))
        await world.until(lambda: source.pod(PodUid("u-2")))

        old = source.pod(PodUid("u-1"))
        assert old is not None
        assert old.deletion_time is not None
        await source.finalize(PodUid("u-1"))

        assert world.server.get("pods", "default", "a") is not None
        assert [pod.uid for pod in source.pods()] == ["u-2"]


async def test_a_forced_deletion_stops_at_once() -> None:
    """A pod that is gone from the API gets no grace, and nothing is asked of the API for it."""
    async with following(an_api_pod("a", "u-a")) as (world, source):
        world.server.remove("pods", "default", "a")
        await world.until(lambda: (pod := source.pod(PodUid("u-a"))) and pod.deletion_time)

        assert source.pod(PodUid("u-a")).deletion_grace_seconds == 0  # type: ignore[union-attr]
        await source.finalize(PodUid("u-a"))
        assert world.server.count("delete") == 0


async def test_a_pod_that_cannot_be_honoured_is_refused_with_the_path() -> None:
    """It is never run without what it asks for, and never in silence."""
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "v"}}
    async with following(an_api_pod("a", "u-a", spec={"volumes": [volume]})) as (_, source):
        refused = source.refused(PodUid("u-a"))

        assert refused is not None
        assert refused.reason == "UnsupportedField"
        assert "spec.volumes[0].persistentVolumeClaim" in refused.message
        assert source.pods() == []


async def test_a_refused_pod_goes_when_it_is_deleted() -> None:
    """Nothing of it runs here: the API may forget it at once."""
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "v"}}
    async with following(an_api_pod("a", "u-a", spec={"volumes": [volume]})) as (world, _):
        await world.api.delete(PODS, "default", "a")
        await world.until(lambda: world.server.get("pods", "default", "a") is None)


async def test_admission_is_asked_once_for_each_pod_in_the_order_of_their_making() -> None:
    """A pod that was admitted is not asked about again, nor after a restart."""
    async with a_world() as world:
        for name, when in (("late", "2026-01-02"), ("early", "2026-01-01")):
            meta = {"creationTimestamp": f"{when}T00:00:00Z"}
            world.server.put("pods", an_api_pod(name, f"u-{name}", metadata=meta))
        admission = Admission()
        admission.refused.add("late")
        first = a_source(world, admission)
        async with world.running(first.run):
            await world.until(first.certain)
            assert admission.asked == ["early", "late"]
            assert [pod.name for pod in first.pods()] == ["early"]
            assert first.refused(PodUid("u-late")) is not None

        admission.asked.clear()
        second = a_source(world, admission)
        second.remember(dict(world.memory.pods))
        async with world.running(second.run):
            await world.until(second.certain)
            assert admission.asked == ["late"]


async def test_a_pod_that_ended_elsewhere_is_not_run_again() -> None:
    """A node that lost everything must not repeat a job."""
    async with following(an_api_pod("a", "u-a", status={"phase": "Succeeded"})) as (_, source):
        assert source.pods() == []


async def test_a_mirror_is_never_run() -> None:
    """It shows a static pod, which runs anyhow."""
    meta = {"annotations": {"kubernetes.io/config.mirror": "u-static"}}
    async with following(an_api_pod("m", "u-m", metadata=meta)) as (world, source):
        assert source.pods() == []
        assert source.mirrors()[PodUid("u-static")].name == "m"

        world.server.remove("pods", "default", "m")
        await world.until(lambda: not source.mirrors())


async def test_without_the_api_the_pods_of_before_run() -> None:
    """They wait a moment for the API, and are pods of the node from the start."""
    async with following(an_api_pod("a", "u-a")) as (world, _):
        kept = dict(world.memory.pods)
        await world.server.stop()
        source = a_source(world)
        source.remember(kept)
        assert [pod.name for pod in source.pods()] == ["a"]

        async with world.running(source.run):
            assert source.pod(PodUid("u-a")) is None
            await world.until(lambda: source.pod(PodUid("u-a")))
            assert world.clock.monotonic() >= 10
            assert not source.certain()

            world.server.put("pods", an_api_pod("b", "u-b"))
            await world.server.start()
            await world.until(source.certain)
            await world.until(lambda: source.pod(PodUid("u-b")))
            pod = source.pod(PodUid("u-a"))
            assert pod is not None
            assert pod.deletion_time is None


async def test_a_pod_that_was_deleted_meanwhile_ends_when_the_api_is_back() -> None:
    """The first complete list says so; an error says nothing."""
    async with following(an_api_pod("a", "u-a")) as (world, _):
        kept = dict(world.memory.pods)
        source = a_source(world)
        source.remember(kept)
        world.server.remove("pods", "default", "a")
        world.server.refuse(500, times=3, verb="list", resource="pods")

        async with world.running(source.run):
            await world.until(source.certain)
            pod = source.pod(PodUid("u-a"))
            assert pod is not None
            assert pod.deletion_time is not None
            assert world.memory.pods == {}


async def test_a_pod_that_runs_goes_on_when_its_new_form_cannot_be_honoured() -> None:
    """An ephemeral container of a kind that we do not know must not end the pod."""
    async with following(an_api_pod("a", "u-a")) as (world, source):
        value = world.server.get("pods", "default", "a")
        assert value is not None
        container = {"name": "debug", "image": "x", "volumeDevices": [{"name": "d", "devicePath": "/d"}]}
        spec = {**value["spec"], "ephemeralContainers": [container]}

        world.server.put("pods", {**value, "spec": spec, "metadata": {**value["metadata"], "generation": 2}})
        await world.until(lambda: (known := source.at_api(PodUid("u-a"))) and known.generation == 2)

        assert source.refused(PodUid("u-a")) is None
        assert source.pod(PodUid("u-a")) is not None


async def test_a_pod_that_runs_goes_on_over_a_restart_in_its_old_form() -> None:
    """What a run before has accepted is not refused since its new form cannot be honoured."""
    container = {"name": "debug", "image": "x", "volumeDevices": [{"name": "d", "devicePath": "/d"}]}
    async with following(an_api_pod("a", "u-a")) as (world, source):
        value = world.server.get("pods", "default", "a")
        assert value is not None
        world.server.put("pods", {**value, "spec": {**value["spec"], "ephemeralContainers": [container]}})
        await world.until(lambda: (known := source.at_api(PodUid("u-a"))) and not known.supported)
        await world.until(lambda: world.memory.pods)
        again = a_source(world)
        again.remember(dict(world.memory.pods))

        async with world.running(again.run):
            await world.until(again.certain)

            assert again.refused(PodUid("u-a")) is None
            assert again.pod(PodUid("u-a")) is not None
            await world.api.delete(PODS, "default", "a", grace_seconds=7)
            await world.until(lambda: (pod := again.pod(PodUid("u-a"))) and pod.deletion_time)


async def test_pods_that_went_while_the_kubelet_was_down_are_in_nobodys_way() -> None:
    """A new pod is not refused for what the API has deleted."""
    async with a_world() as world:
        world.server.put("pods", an_api_pod("a", "u-1"))
        first = a_source(world)
        async with world.running(first.run):
            await world.until(first.certain)
        world.server.remove("pods", "default", "a")
        world.server.put("pods", an_api_pod("a", "u-2"))
        beside: list[str] = []

        def admit(pod: Pod, others: Sequence[Pod]) -> Refused | None:
            beside.extend(other.uid for other in others)
            return None

        second = ClusterPods(world.api, NODE, world.memory, world.clock, admit=admit, run_id="run")
        second.remember(dict(world.memory.pods))
        async with world.running(second.run):
            await world.until(second.certain)
            await world.until(lambda: second.pod(PodUid("u-2")))

        assert beside == []


async def test_nothing_is_kept_of_pods_that_are_gone() -> None:
    """However many come and go."""
    async with following() as (world, source):
        meta = {"annotations": {"kubernetes.io/config.mirror": "u-static"}}
        world.server.put("pods", an_api_pod("m", "u-m", metadata=meta))
        world.server.put("pods", an_api_pod("a", "u-a"))
        await world.until(lambda: source.pod(PodUid("u-a")))
        world.server.remove("pods", "default", "m")
        world.server.remove("pods", "default", "a")
        await world.until(lambda: not source.mirrors())
        await world.until(lambda: (pod := source.pod(PodUid("u-a"))) and pod.deletion_time)
        await source.finalize(PodUid("u-a"))

        assert not source.received_ns(PodUid("u-m"))
        assert not source.received_ns(PodUid("u-a"))


async def test_no_pod_is_judged_before_the_node_is_known() -> None:
    """Its labels and taints are the API's; what was accepted before does not wait for them for ever."""
    async with a_world() as world:
        world.server.put("pods", an_api_pod("a", "u-a"))
        first = a_source(world)
        async with world.running(first.run):
            await world.until(first.certain)
        world.server.put("pods", an_api_pod("b", "u-b"))
        known = asyncio.Event()
        admission = Admission()
        source = a_source(world, admission)
        source.node_known = known.wait
        source.remember(dict(world.memory.pods))
        async with world.running(source.run):
            await world.until(lambda: source.pod(PodUid("u-a")))
            assert (admission.asked, source.certain()) == ([], False)

            known.set()
            await world.until(lambda: source.pod(PodUid("u-b")))
            assert admission.asked == ["b"]
