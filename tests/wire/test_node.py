"""A node in one process: loops and servers of kubelet and proxy over real sockets, with fakes underneath."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc
from tripod.proxy.v1 import proxy_service_pb2 as proxy_pb
from tripod.proxy.v1 import proxy_service_pb2_grpc as proxy_grpc

from services.common import telemetry
from services.common.clock import SystemClock
from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel, stream
from services.common.grpcserver import Listener, Servicer, build_server
from services.common.watch import WatchHub
from services.kubelet.adapters.hook_runner import NetworkHookRunner
from services.kubelet.core.allocate import Ranges
from services.kubelet.core.model import PodUid
from services.kubelet.core.resolve import Surroundings
from services.kubelet.core.status import PodStatus, to_kubernetes
from services.kubelet.loops.actions import Actor, NodeFacts
from services.kubelet.loops.eventlog import EventLog
from services.kubelet.loops.explainer import Explainer, Faults
from services.kubelet.loops.hooks import Hooks
from services.kubelet.loops.housekeeping import Housekeeper
from services.kubelet.loops.pleg import RuntimeWatcher
from services.kubelet.loops.podvolumes import PodVolumes
from services.kubelet.loops.prober import Prober
from services.kubelet.loops.pulling import Puller
from services.kubelet.loops.stopping import Stopper
from services.kubelet.loops.sync import PodWorkers
from services.kubelet.objects.brought import LocalObjects
from services.kubelet.objects.store import ObjectStore
from services.kubelet.objects.tokens import TokenIssuer
from services.kubelet.ports import ProbeOutcome, ProbeTarget
from services.kubelet.server.objects import ObjectServicer
from services.kubelet.server.pods import PodServicer
from services.proxy.adapters.kubelet_client import KubeletClient
from services.proxy.core.conntrack import Flow, StaleFlows
from services.proxy.core.model import Decision
from services.proxy.core.planner import Planner
from services.proxy.core.ruleset import Ruleset
from services.proxy.loops import kubelet_feed
from services.proxy.loops.kubelet_feed import KubeletFeed
from services.proxy.loops.sync import ServiceSync
from services.proxy.server import ProxyServicer
from tests.fakes.files import FakeFiles
from tests.fakes.kernel import MemoryKernel
from tests.fakes.last_words import FakeLastWords
from tests.fakes.runtime import FakeRuntime
from tests.fakes.volumes import FakeVolumeFiles
from tests.waiting import until_told

pytestmark = pytest.mark.asyncio
LIMIT_SECONDS = 15


class NoFlows:
    """Tracks nothing."""

    async def delete(self, flows: Sequence[StaleFlows]) -> None:
        """Do nothing."""

    async def udp(self) -> Sequence[Flow]:
        """List nothing."""
        return ()


class Probes:
    """Answers probes as a test says, by pod."""

    def __init__(self) -> None:
        self.unready: set[str] = set()

    async def run(self, probe: object, target: ProbeTarget) -> ProbeOutcome:
        """Answer."""
        good = target.pod.name not in self.unready
        return ProbeOutcome(good, "" if good else "told so")


@dataclass
class Node:
    """What a test drives and looks at."""

    runtime: FakeRuntime
    kernel: MemoryKernel
    probes: Probes
    files: FakeFiles
    store: ObjectStore
    kubelet_channel: grpc.aio.Channel
    proxy_channel: grpc.aio.Channel
    traces: telemetry.Telemetry
    housekeeper: Housekeeper
    refused: dict[str, str]
    words: FakeLastWords
    events: EventLog

    async def apply(self, *objects: Mapping[str, Any]) -> None:
        """Apply objects over the wire."""
        stub = object_grpc.ObjectServiceStub(self.kubelet_channel)
        data = "\n---\n".join(json.dumps(value) for value in objects).encode()
        await call(stub.ApplyObjects, object_pb.ApplyObjectsRequest(manifest=data), deadline_seconds=5)

    async def delete(self, *names: str) -> None:
        """Delete pods over the wire."""
        stub = object_grpc.ObjectServiceStub(self.kubelet_channel)
        refs = [object_pb.ObjectRef(kind="Pod", name=name) for name in names]
        await call(stub.DeleteObjects, object_pb.DeleteObjectsRequest(refs=refs), deadline_seconds=5)

    async def pods(self) -> dict[str, pod_pb.Pod]:
        """List pods over the wire."""
        stub = pod_grpc.PodServiceStub(self.kubelet_channel)
        answer = await call(stub.ListPods, pod_pb.ListPodsRequest(), deadline_seconds=5)
        return {pod.name: pod for pod in answer.pods}

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait for a condition, with a limit."""
        await until_told(holds, LIMIT_SECONDS)

    async def until_ready(self, *names: str) -> None:
        """Wait until pods are Ready."""

        async def ready() -> bool:
            pods = await self.pods()
            return all(name in pods and pods[name].ready for name in names)

        await self.until(ready)

    async def until_endpoints(self, count: int) -> None:
        """Wait until the kernel has as many endpoints."""

        async def programmed() -> bool:
            return isinstance(self.kernel.rules, Ruleset) and len(self.kernel.rules.endpoints) == count

        await self.until(programmed)


@asynccontextmanager
async def running(
    folder: Path, runtime: FakeRuntime, kernel: MemoryKernel, files: FakeFiles | None = None
) -> AsyncIterator[Node]:
    """Run a node on a folder; a second one on the same folder and fakes is its restart."""
    clock, traces = SystemClock(), telemetry.setup("tripod-test")
    store = ObjectStore(folder / "db", Ranges(IPv4Network("10.2.0.0/24")), clock, run_id=str(id(traces)))
    await store.open()
    statuses: WatchHub[PodStatus] = WatchHub(store.pod_hub.run_id)
    events, probes = EventLog(clock, "run"), Probes()
    files = files or FakeFiles()
    runner, words = NetworkHookRunner(runtime, events, clock), FakeLastWords()
    hooks = Hooks(runner, events, clock, lambda uid: workers.probe_moved(uid))
    brought = LocalObjects(store, TokenIssuer(folder, "urn:test", clock))
    volumes = PodVolumes(
        brought,
        FakeVolumeFiles(),
        events,
        clock,
        state_directory=folder,
        around=lambda addresses: Surroundings(pod_ips=addresses),
        recursive_read_only=runtime.recursive_read_only,
    )
    actor = Actor(
        runtime,
        store,
        files,
        events,
        NodeFacts(folder, 1 << 30),
        stopper=Stopper(runtime, runner, events, clock),
        hooks=hooks,
        words=words,
        volumes=volumes,
        puller=Puller(runtime, brought, events, brought.account_secrets),
    )
    workers = PodWorkers(
        source=store,
        runtime=runtime,
        actor=actor,
        files=files,
        events=events,
        clock=clock,
        hub=statuses,
        host_ip="192.0.2.1",
        hooks=hooks,
        words=words,
        volumes=volumes,
    )
    prober = Prober(probes, events, clock, workers.probe_moved)
    workers.bind(prober)
    workers.expect(pod.uid for pod in store.pods())
    watcher = RuntimeWatcher(runtime, clock, workers.wake)

    def status(uid: str) -> dict[str, Any] | None:
        found = statuses.get(uid)
        return to_kubernetes(found) if found else None

    refused: dict[str, str] = {}
    faults = Faults(
        runtime=lambda: "", store=store.fault, disk=lambda: "", manifests=lambda: refused, origin=store.origin
    )
    explainer = Explainer(workers=workers, prober=prober, events=events.events, faults=faults, clock=clock)
    objects = ObjectServicer(store, status, clock)
    pods = PodServicer(
        source=store,
        runtime=runtime,
        statuses=statuses,
        events=events.hub,
        remembered=lambda: list(events.events()),
        settled=workers.settled,
        explainer=explainer,
        clock=clock,
        log_root=folder,
    )
    kubelet = build_server(
        [
            Servicer(
                "tripod.kubelet.v1.ObjectService",
                partial(object_grpc.add_ObjectServiceServicer_to_server, objects),
            ),
            Servicer(
                "tripod.kubelet.v1.PodService", partial(pod_grpc.add_PodServiceServicer_to_server, pods)
            ),
        ],
        listeners=[Listener(f"unix://{folder}/kubelet.sock")],
    )
    hub: WatchHub[Decision] = WatchHub("proxy")
    kubelet_channel = open_channel(f"unix://{folder}/kubelet.sock")
    plan = Planner()
    sync = ServiceSync(
        kernel=kernel,
        flows=NoFlows(),
        local=None,
        addresses=lambda: ["192.0.2.1"],
        clock=clock,
        hub=hub,
        plan=plan,
        sources=kubelet_feed.SOURCES,
    )
    feed = KubeletFeed(plan, sync, clock)
    servicer = ProxyServicer(
        hub,
        noted=sync.programmed.get,
        local_fault=lambda *_: "",
        auditors=[sync.audit],
        repair_count=sync.repairs.total,
        clock=clock,
    )
    proxy = build_server(
        [
            Servicer(
                "tripod.proxy.v1.ProxyService",
                partial(proxy_grpc.add_ProxyServiceServicer_to_server, servicer),
            )
        ],
        listeners=[Listener(f"unix://{folder}/proxy.sock")],
    )
    proxy_channel = open_channel(f"unix://{folder}/proxy.sock")
    client = KubeletClient(kubelet_channel, clock)
    housekeeper = Housekeeper(store, runtime, files, clock)
    await kubelet.start()
    await proxy.start()
    async with asyncio.TaskGroup() as group:
        loops = [
            prober.run(),
            hooks.run(),
            workers.run(),
            workers.follow_source(),
            watcher.follow(),
            sync.run(),
            feed.follow_services(client.services()),
            feed.follow_pods(client.pods()),
        ]
        tasks = [group.create_task(loop) for loop in loops]
        try:
            yield Node(
                runtime=runtime,
                kernel=kernel,
                probes=probes,
                files=files,
                store=store,
                kubelet_channel=kubelet_channel,
                proxy_channel=proxy_channel,
                traces=traces,
                housekeeper=housekeeper,
                refused=refused,
                words=words,
                events=events,
            )
        finally:
            for task in tasks:
                task.cancel()
            await kubelet_channel.close(None)
            await proxy_channel.close(None)
            await kubelet.stop(0.1)
            await proxy.stop(0.1)
    await store.close()


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Run a node."""
    async with running(tmp_path, FakeRuntime(present=["app:1"]), MemoryKernel()) as made:
        yield made


def a_pod(name: str, image: str = "app:1", **spec: Any) -> dict[str, Any]:
    """Write a pod of the service `web` with a readiness probe."""
    probe = {"httpGet": {"port": 80}, "periodSeconds": 1, "failureThreshold": 1}
    container = {"name": "app", "image": image, "readinessProbe": probe}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [container], **spec},
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
}


async def test_a_manifest_becomes_endpoints_in_the_kernel(node: Node) -> None:
    """From bytes to rules, over every wire; the trace ends where the packets begin."""
    await node.apply(a_pod("a"), a_pod("b"), SERVICE)
    await node.until_ready("a", "b")
    await node.until_endpoints(2)

    pods = await node.pods()
    assert isinstance(node.kernel.rules, Ruleset)
    assert {target for target, _ in node.kernel.rules.endpoints.values()} == {
        p.pod_ips[0] for p in pods.values()
    }
    trace_id = int(pods["a"].trace_id, 16)

    async def ended() -> bool:
        return {"pod.start", "endpoints.program"} <= {s.name for s in node.traces.ring.spans(trace_id)}

    await node.until(ended)


async def test_an_unready_pod_leaves_its_service_and_comes_back(node: Node) -> None:
    """And the reason can be asked for."""
    await node.apply(a_pod("a"), a_pod("b"), SERVICE)
    await node.until_ready("a", "b")
    await node.until_endpoints(2)
    node.probes.unready.add("a")
    await node.until_endpoints(1)
    stub = proxy_grpc.ProxyServiceStub(node.proxy_channel)
    async with stream(stub.WatchEndpoints, proxy_pb.WatchEndpointsRequest()) as answers:
        told = await anext(answers)
    node.probes.unready.clear()
    await node.until_endpoints(2)

    endpoints = {e.pod_name: (e.used, e.reason) for e in told.endpoints_upserted.ports[0].endpoints}
    assert endpoints == {"a": (False, "NotReady"), "b": (True, "Ready")}


async def test_a_crashed_container_starts_again(node: Node) -> None:
    """At once, with its count, and with the exit code of the one before."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    node.runtime.end(PodUid((await node.pods())["a"].uid), "app", 3)

    async def again() -> bool:
        pod = (await node.pods())["a"]
        return pod.ready and pod.containers[0].restart_count == 1

    await node.until(again)
    assert (await node.pods())["a"].containers[0].last_termination_state.exit_code == 3


async def test_an_image_that_is_here_but_would_be_pulled_is_explained(node: Node) -> None:
    """The tag latest means to pull; the person learns that, and what to do."""
    node.runtime.present.add("app:latest")
    await node.apply(a_pod("a", image="app:latest"))

    async def waits() -> bool:
        pods = await node.pods()
        return "a" in pods and pods["a"].containers[0].state.reason == "ImagePullBackOff"

    await node.until(waits)
    message = (await node.pods())["a"].containers[0].state.message
    assert "no such host" in message
    assert "The image is there locally, but is pulled because its tag is latest" in message


async def test_a_deleted_pod_goes_wholly(node: Node) -> None:
    """Containers, sandbox, folder, endpoints, object."""
    await node.apply(a_pod("a"), SERVICE)
    await node.until_ready("a")
    await node.until_endpoints(1)
    await node.delete("a")

    async def gone() -> bool:
        return not await node.pods()

    await node.until(gone)
    await node.until_endpoints(0)
    assert await node.runtime.list_pods() == {}
    assert node.files.folders == set()
    assert node.store.pods() == []


async def test_what_was_removed_while_no_kubelet_ran_is_not_forgotten(tmp_path: Path) -> None:
    """A restart count goes on, a finished pod stays finished, and the start time stays what it was."""
    runtime, kernel, files = FakeRuntime(present=["app:1"]), MemoryKernel(), FakeFiles()
    async with running(tmp_path, runtime, kernel, files) as first:
        await first.apply(a_pod("runs"), a_pod("job", restartPolicy="Never"))
        await first.until_ready("runs")
        await first.until_ready("job")
        pods = await first.pods()
        runtime.end(PodUid(pods["job"].uid), "app", 0)

        async def told() -> bool:
            return (await first.pods())["job"].phase == pod_pb.POD_PHASE_SUCCEEDED

        await first.until(told)
    for pod in pods.values():
        for container in (await runtime.observe(PodUid(pod.uid))).containers:
            await runtime.remove_container(container.id)
    async with running(tmp_path, runtime, kernel, files) as second:

        async def restarted() -> bool:
            runs = (await second.pods())["runs"]
            return runs.ready and runs.containers[0].restart_count == 1

        await second.until(restarted)
        after = await second.pods()

    assert after["job"].phase == pod_pb.POD_PHASE_SUCCEEDED
    assert after["job"].containers[0].restart_count == 0
    assert {name: pod.start_time for name, pod in after.items()} == {n: p.start_time for n, p in pods.items()}


async def test_a_restart_touches_nothing(tmp_path: Path) -> None:
    """The second kubelet and proxy find all as it should be, and write nothing."""
    runtime, kernel = FakeRuntime(present=["app:1"]), MemoryKernel()
    async with running(tmp_path, runtime, kernel) as first:
        await first.apply(a_pod("a"), SERVICE)
        await first.until_ready("a")
        await first.until_endpoints(1)
        before = await runtime.list_pods()
    writes, calls = kernel.writes, len(runtime.calls)
    async with running(tmp_path, runtime, kernel) as second:
        assert [pod.ready for pod in (await second.pods()).values()] == [True]
        stub = proxy_grpc.ProxyServiceStub(second.proxy_channel)

        async def synced() -> bool:
            listed = await call(stub.ListServices, proxy_pb.ListServicesRequest(), deadline_seconds=5)
            return bool(listed.services) and not listed.services[0].error

        await second.until(synced)
        after = await runtime.list_pods()

    changing = {"create_sandbox", "create_container", "start_container", "stop_container", "stop_sandbox"}
    assert after == before
    assert not changing & set(runtime.calls[calls:])
    assert kernel.writes == writes


async def test_a_runtime_that_is_away_removes_nothing(node: Node) -> None:
    """An error is never an empty list."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    before = await node.runtime.list_pods()
    node.runtime.down = True
    with pytest.raises(Exception, match="does not answer"):
        await node.housekeeper.clean()
    node.runtime.down = False

    assert await node.runtime.list_pods() == before


async def test_what_nobody_wants_is_removed_at_the_second_look(node: Node) -> None:
    """Once could be a moment between two writes."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    (mine,) = node.store.pods()
    await node.store.delete([mine.key], grace_seconds=0)
    await node.store.finalize(mine.uid)
    await node.housekeeper.clean()
    once = len(await node.runtime.list_pods())
    await node.housekeeper.clean()

    assert once in (0, 1)
    assert await node.runtime.list_pods() == {}


async def test_what_nobody_wants_is_removed_even_without_its_sandbox(node: Node) -> None:
    """Somebody removed the sandbox alone: its containers are found by their labels."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    (mine,) = node.store.pods()
    await node.store.delete([mine.key], grace_seconds=0)
    await node.store.finalize(mine.uid)
    node.runtime.rob(mine.uid)
    await node.housekeeper.clean()
    await node.housekeeper.clean()

    assert await node.runtime.list_pods() == {}


async def test_a_watch_resumes_and_refuses_what_it_cannot(node: Node) -> None:
    """Snapshot, bookmark, changes; then on from a revision of this run alone."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    stub = pod_grpc.PodServiceStub(node.kubelet_channel)
    kinds = []
    async with stream(stub.WatchPods, pod_pb.WatchPodsRequest()) as answers:
        async for answer in answers:
            kinds.append(answer.WhichOneof("event"))
            if kinds[-1] == "bookmark":
                break
    resumed = pod_pb.WatchPodsRequest(after_revision=answer.revision, server_run_id=answer.server_run_id)
    async with stream(stub.WatchPods, resumed) as answers:
        first = await anext(answers)
    with pytest.raises(RemoteError) as caught:
        async with stream(
            stub.WatchPods, pod_pb.WatchPodsRequest(after_revision=1, server_run_id="x")
        ) as answers:
            await anext(answers)

    assert kinds == ["pod_upserted", "bookmark"]
    assert first.WhichOneof("event") == "bookmark"
    assert caught.value.reason == "REVISION_COMPACTED"


async def test_events_tell_the_story(node: Node) -> None:
    """As `tripod describe` shows it."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    stub = pod_grpc.PodServiceStub(node.kubelet_channel)
    reasons = []
    request = pod_pb.WatchEventsRequest(pod_name="a", only_remembered=True)
    async with stream(stub.WatchEvents, request) as answers:
        async for answer in answers:
            if answer.WhichOneof("item") == "event":
                reasons.append(answer.event.reason)

    assert reasons == ["Pulled", "Created", "Started"]


async def test_a_refused_manifest_names_every_fault(node: Node) -> None:
    """As field violations, which a program can read."""
    with pytest.raises(RemoteError) as caught:
        await node.apply({**a_pod("a"), "kind": "Pot"}, a_pod("b", restartPolcy="x"))

    assert caught.value.reason == "MANIFEST_INVALID"
    assert [v.field for v in caught.value.violations] == ["Pot a: kind", "Pod b: spec.restartPolcy"]


async def test_reflection_lists_the_services(node: Node) -> None:
    """grpcurl and buf curl need no files of ours."""
    found: dict[str, set[str]] = {}
    for name, channel in (("kubelet", node.kubelet_channel), ("proxy", node.proxy_channel)):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            listed = MessageToDict(answer)["listServicesResponse"]["service"]
            found[name] = {service["name"] for service in listed}

    assert {"tripod.kubelet.v1.ObjectService", "grpc.health.v1.Health"} <= found["kubelet"]
    assert "tripod.proxy.v1.ProxyService" in found["proxy"]
