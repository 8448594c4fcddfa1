"""News of an API server become rules, and end the traces of pods' starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from services.common import telemetry, telemetry_names
from services.common.clock import SystemClock, unix_nanoseconds
from services.common.replica import Change
from services.common.watch import WatchHub
from services.proxy.core.cluster import ClusterPlan, Node
from services.proxy.core.model import Decision, Pod, Protocol, Service, ServicePort
from services.proxy.core.ruleset import Ruleset
from services.proxy.core.slices import Slice, SliceEndpoint, SlicePort
from services.proxy.loops import cluster_feed
from services.proxy.loops.cluster_feed import ClusterFeed
from services.proxy.loops.sync import ServiceSync
from services.proxy.ports import PodChanged
from tests import waiting
from tests.fakes.kernel import MemoryKernel
from tests.faults.test_proxy_refusals import MemoryFlows

until = partial(waiting.until, seconds=10)

WEB = Service("s", "default", "web", "10.2.0.1", (ServicePort(80, 0),), {})


def a_slice(*ready: int, trigger_ns: int = 0) -> Slice:
    """Make a slice of pods that are ready, odd numbers on node a."""
    endpoints = [
        SliceEndpoint(f"10.1.0.{i}", node="a" if i % 2 else "b", pod_uid=f"u{i}", pod_name=f"web-{i}")
        for i in ready
    ]
    port = SlicePort("", Protocol.TCP, 8080)
    return Slice("default/web-1", "default/web", (port,), tuple(endpoints), trigger_ns)


class World:
    """A proxy of a cluster over a kernel in memory."""

    def __init__(self) -> None:
        clock = SystemClock()
        hub: WatchHub[Decision] = WatchHub("test")
        self.kernel, self.plan = MemoryKernel(), ClusterPlan("a")
        self.latencies: list[float] = []
        self.node_news = 0
        self.sync = ServiceSync(
            kernel=self.kernel,
            flows=MemoryFlows(),
            local=None,
            addresses=lambda: ["192.0.2.1"],
            clock=clock,
            hub=hub,
            plan=self.plan,
            sources=cluster_feed.SOURCES,
        )
        self.feed = ClusterFeed(
            self.plan, self.sync, clock, nodes_changed=self._count, programmed=self.latencies.append
        )
        self._slice: Slice | None = None

    def _count(self) -> None:
        self.node_news += 1

    def tell(self, after: Slice | None) -> None:
        """Tell what became of the slice."""
        change = Change("default/web-1", "slice", self._slice, after)
        self._slice = after
        self.feed.tell_slices([change])

    def begin(self) -> None:
        """Tell the service and the nodes, and that all was told."""
        self.feed.tell_services([Change("default/web", "s", None, WEB)])
        self.feed.tell_nodes([Change("a", "na", None, Node("a", ("10.1.0.0/24",), "192.0.2.1"))])
        for source in cluster_feed.SOURCES:
            self.sync.caught_up(source)

    async def leads_to(self, *numbers: int) -> None:
        """Wait until the kernel leads to these pods and no other."""
        wanted = {(f"10.1.0.{i}", 8080) for i in numbers}
        await until(lambda: self._leads_to(wanted))

    def pods(self) -> set[str]:
        """Return the networks whose sources count as pods in the kernel."""
        return set(self.kernel.rules.pods) if isinstance(self.kernel.rules, Ruleset) else set()

    def _leads_to(self, wanted: set[tuple[str, int]]) -> bool:
        rules = self.kernel.rules
        return isinstance(rules, Ruleset) and set(rules.endpoints.values()) == wanted

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        """Run the loop and a test's body."""

        async def all_of_it() -> None:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self.sync.run())
                await body()
                task.cancel()

        asyncio.run(all_of_it())


def test_nothing_is_written_before_all_was_told() -> None:
    """Services without their slices would be refused for a moment."""
    world = World()

    async def body() -> None:
        world.feed.tell_services([Change("default/web", "s", None, WEB)])
        for source in cluster_feed.SOURCES[:2]:
            world.sync.caught_up(source)
        assert world.sync.waits_for() == ["nodes"]
        world.tell(a_slice(1, 2))
        world.begin()
        await world.leads_to(1, 2)

    world.run(body)
    assert world.kernel.writes == 1


def test_slices_that_change_are_followed() -> None:
    """A slice that goes takes its endpoints along; then the service refuses."""
    world = World()

    async def body() -> None:
        world.begin()
        for numbers in ((1, 2), (2,), (2, 3)):
            world.tell(a_slice(*numbers))
            await world.leads_to(*numbers)
        world.tell(None)
        await world.leads_to()
        assert isinstance(world.kernel.rules, Ruleset)
        assert world.kernel.rules.refused == {("10.2.0.1", "tcp", 80)}

    world.run(body)


async def _pods(*events: PodChanged) -> AsyncIterator[PodChanged]:
    for event in events:
        yield event


def test_the_trace_of_a_pods_start_ends_where_its_endpoint_is_first_used() -> None:
    """Of a pod here as a child of what its kubelet told; of another in the trace of its UID."""
    traces, world = telemetry.setup("proxy-test"), World()
    now = unix_nanoseconds(SystemClock().now())
    here = telemetry.episode_trace_id("u1", telemetry_names.POD_START, 0)
    parent = f"00-{here:032x}-00000000000000aa-01"

    async def body() -> None:
        pod = Pod("u1", "default", "web-1", {}, "10.1.0.1", ready=True)
        await world.feed.follow_pods(_pods(PodChanged("u1", pod, parent)))
        world.begin()
        world.tell(a_slice(1, 2, trigger_ns=now))
        await world.leads_to(1, 2)
        world.tell(a_slice(1, 2, 4, trigger_ns=now))
        await world.leads_to(1, 2, 4)
        # One that was there before us, and one that comes back.
        world.tell(a_slice(1, 4, 6, trigger_ns=1))
        await world.leads_to(1, 4, 6)
        world.tell(a_slice(1, 2, 4, 6, trigger_ns=now))
        await world.leads_to(1, 2, 4, 6)
        await until(lambda: len(world.latencies) == 4)
        # One that was made and became ready within a second: its slice does not say when.
        world.tell(a_slice(1, 2, 4, 6, 8))
        await world.leads_to(1, 2, 4, 6, 8)
        assert len(world.latencies) == 4

    world.run(body)
    spans = {
        str((span.attributes or {})["k8s.pod.name"]): span
        for span in traces.ring.spans()
        if span.name == telemetry_names.ENDPOINTS_PROGRAM
    }

    assert spans.keys() == {"web-1", "web-2", "web-4", "web-8"}
    assert spans["web-1"].parent is not None
    assert spans["web-1"].parent.span_id == 0xAA
    context = spans["web-2"].get_span_context()
    assert context is not None
    assert context.trace_id == telemetry.episode_trace_id("u2", telemetry_names.POD_START, 0)
    assert len([s for s in traces.ring.spans() if s.name == telemetry_names.ENDPOINTS_PROGRAM]) == 4


def test_a_node_that_changes_changes_what_counts_as_a_pod() -> None:
    """Its network comes later than the node where a controller gives it out."""
    world = World()

    async def body() -> None:
        world.tell(a_slice(1))
        world.begin()
        await world.leads_to(1)
        assert world.pods() == {"10.1.0.0/24"}
        world.feed.tell_nodes([Change("a", "na", None, Node("a", ("10.5.0.0/24",)))])
        await until(lambda: world.pods() == {"10.5.0.0/24"})

    world.run(body)
    assert world.node_news == 2
