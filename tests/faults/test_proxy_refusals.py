"""The kernel refuses, and events storm: nothing is forgotten, and work is not done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

import pytest

from services.common.clock import SystemClock
from services.common.watch import WatchHub
from services.proxy.core import compose, endpoints
from services.proxy.core.conntrack import Flow, StaleFlows
from services.proxy.core.model import Decision, Pod, Protocol, Service, ServicePort
from services.proxy.core.parts import Surroundings
from services.proxy.core.planner import Planner
from services.proxy.core.ruleset import Damage, Place, Ruleset
from services.proxy.loops import kubelet_feed
from services.proxy.loops.kubelet_feed import KubeletFeed
from services.proxy.loops.sync import ServiceSync
from services.proxy.ports import CaughtUp, PodChanged, ServiceChanged, StartedOver
from tests.fakes.kernel import MemoryKernel
from tests.waiting import until

EVENT = TypeVar("EVENT")
NODE = "192.0.2.1"


class HastyClock(SystemClock):
    """Waits a hundredth of what is asked."""

    async def sleep(self, seconds: float) -> None:
        """Wait a little."""
        await super().sleep(seconds / 100)


def place(flow: Flow | StaleFlows) -> Place:
    """Return where a flow was sent."""
    return flow.address, flow.protocol, flow.port


@dataclass
class MemoryFlows:
    """Tracked flows in memory. Obeys `Flows`."""

    flows: list[Flow] = field(default_factory=list)

    async def delete(self, flows: Sequence[StaleFlows]) -> None:
        """Forget flows."""
        gone = {(*place(flow), flow.endpoint or (flow.address, flow.port)) for flow in flows}
        self.flows = [f for f in self.flows if (*place(f), f.endpoint) not in gone]

    async def udp(self) -> Sequence[Flow]:
        """List the flows."""
        return [flow for flow in self.flows if flow.protocol == "udp"]


class Node:
    """A proxy's loop over a kernel in memory, and the news that it is told."""

    def __init__(self) -> None:
        self.kernel, self.flows = MemoryKernel(), MemoryFlows()
        self.services: asyncio.Queue[ServiceChanged | StartedOver | CaughtUp] = asyncio.Queue()
        self.pods: asyncio.Queue[PodChanged | StartedOver | CaughtUp] = asyncio.Queue()
        hub: WatchHub[Decision] = WatchHub("test")
        plan = Planner()
        self.sync = ServiceSync(
            kernel=self.kernel,
            flows=self.flows,
            local=None,
            addresses=lambda: [NODE],
            clock=HastyClock(),
            hub=hub,
            plan=plan,
            sources=kubelet_feed.SOURCES,
        )
        self.feed = KubeletFeed(plan, self.sync, HastyClock())

    async def within(self, body: Callable[[], Awaitable[None]]) -> None:
        """Run the loop and a test's body."""
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.sync.run()),
                group.create_task(self.feed.follow_services(_drain(self.services))),
                group.create_task(self.feed.follow_pods(_drain(self.pods))),
            ]
            await body()
            for task in tasks:
                task.cancel()

    def tell(self, *news: Service | Pod) -> None:
        """Tell of services and pods."""
        for one in news:
            if isinstance(one, Service):
                self.services.put_nowait(ServiceChanged(one.uid, one))
            else:
                self.pods.put_nowait(PodChanged(one.uid, one, ""))

    def told_all(self) -> None:
        """End both snapshots."""
        self.services.put_nowait(CaughtUp())
        self.pods.put_nowait(CaughtUp())

    async def has(self, services: Sequence[Service], pods: Sequence[Pod]) -> None:
        """Wait until the kernel has the rules of these, computed from nothing."""
        wanted = compose.build(
            [endpoints.decide(service, pods) for service in services], Surroundings([NODE])
        )
        await until(lambda: self.kernel.rules == wanted)


async def _drain(queue: asyncio.Queue[EVENT]) -> AsyncIterator[EVENT]:
    while True:
        yield await queue.get()


def a_service(number: int, protocol: Protocol = Protocol.TCP) -> Service:
    """Make a service."""
    name = f"s{number}"
    port = ServicePort(80, 8080, protocol, node_port=30000 + number)
    return Service(name, "default", name, f"10.2.0.{number}", (port,), {"app": name}, revision=number)


def a_pod(number: int, app: str, *, ready: bool = True) -> Pod:
    """Make a pod."""
    address = f"10.1.{number // 250}.{number % 250 + 1}"
    return Pod(f"p{number}", "default", f"p{number}", {"app": app}, address, ready=ready, serving=ready)


REFUSALS = [
    "ENOBUFS for element of endpoints: No buffer space available",
    "EBUSY for chain of lb-2: Device or resource busy",
    "EINTR: Interrupted system call",
]


async def _refused_then_taken() -> None:
    node = Node()
    first, second = a_service(1), a_service(2)
    pods = [a_pod(1, "s1"), a_pod(2, "s1"), a_pod(3, "s2")]

    async def body() -> None:
        node.tell(first, pods[0])
        node.told_all()
        await node.has([first], pods[:1])
        node.kernel.refusals = list(REFUSALS)
        node.tell(pods[1])
        await until(lambda: len(node.kernel.refusals) < len(REFUSALS))
        assert "ENOBUFS" in node.sync.fault
        assert "ENOBUFS" in node.sync.programmed["s1"].error
        # What comes while the kernel refuses is pending like the rest.
        node.tell(second, pods[2])
        await node.has([first, second], pods)
        await until(lambda: not node.sync.fault)

    await node.within(body)

    assert node.kernel.refusals == []
    assert {noted.error for noted in node.sync.programmed.values()} == {""}
    assert {uid: noted.programmed_revision for uid, noted in node.sync.programmed.items()} == {
        "s1": 1,
        "s2": 2,
    }


@pytest.mark.fault("F41")
def test_what_the_kernel_refused_is_applied_later() -> None:
    """Pending changes stay pending, and the refusal is told meanwhile: kubernetes#112604."""
    asyncio.run(_refused_then_taken())


@pytest.mark.fault("F41")
def test_rules_that_went_while_a_change_was_refused_come_back() -> None:
    """After a refusal the kernel is read, not believed to be as it was."""
    node, service = Node(), a_service(1)
    pods = [a_pod(1, "s1"), a_pod(2, "s1")]

    async def body() -> None:
        node.tell(service, pods[0])
        node.told_all()
        await node.has([service], pods[:1])
        node.kernel.refusals = list(REFUSALS)
        node.tell(pods[1])
        while node.kernel.refusals:
            await asyncio.sleep(0.001)
            node.kernel.rules = Damage.TABLE
        await node.has([service], pods)

    asyncio.run(node.within(body))


@pytest.mark.fault("F43")
def test_flows_that_a_former_life_left_behind_are_forgotten() -> None:
    """It was killed between its rules and its flows; the rules are as they should be, the flow is not."""
    node, service = Node(), a_service(1, Protocol.UDP)
    pods = [a_pod(1, "s1"), a_pod(2, "s1")]
    good = Flow("udp", "10.2.0.1", 80, (pods[0].address, 8080))
    left = Flow("udp", "10.2.0.1", 80, ("10.1.9.9", 8080))
    untranslated = Flow("udp", NODE, 30001, (NODE, 30001))
    foreign = Flow("udp", "198.51.100.1", 80, ("198.51.100.1", 80))
    node.flows.flows = [good, left, untranslated, foreign]

    async def body() -> None:
        node.kernel.rules = compose.build([endpoints.decide(service, pods)], Surroundings([NODE]))
        node.tell(service, *pods)
        node.told_all()
        await node.sync.synced.wait()

    asyncio.run(node.within(body))

    assert node.kernel.writes == 0
    assert node.flows.flows == [good, foreign]


@pytest.mark.fault("F43")
def test_flows_of_an_endpoint_that_stops_end_with_it() -> None:
    """It gets no new ones while it drains; that it has gone changes no rule, and counts all the same."""
    node, service = Node(), a_service(1, Protocol.UDP)
    first, second = a_pod(1, "s1"), a_pod(2, "s1")
    draining = replace(first, ready=False, terminating=True)
    flow = Flow("udp", "10.2.0.1", 80, (first.address, 8080))

    async def body() -> None:
        node.tell(service, first, second)
        node.told_all()
        await node.has([service], [first, second])
        node.flows.flows = [flow]
        node.tell(draining)
        await node.has([service], [draining, second])
        await until(lambda: node.sync.pace().waiting_seconds is None)
        assert node.flows.flows == [flow]
        node.pods.put_nowait(PodChanged(first.uid, None, ""))
        await until(lambda: not node.flows.flows)

    asyncio.run(node.within(body))


@pytest.mark.fault("F44")
def test_a_storm_of_flapping_pods_is_few_transactions() -> None:
    """5,000 pods come and flap; the end is what the last news says, with at most a write for 20 events."""
    node, random = Node(), Random(44)
    services = [a_service(number) for number in range(1, 21)]
    last: dict[str, Pod] = {}
    events = 0

    async def body() -> None:
        nonlocal events
        node.tell(*services)
        node.told_all()
        await node.has(services, [])
        for number in random.sample(range(5000), 5000):
            for _ in range(random.randrange(1, 4)):
                pod = a_pod(number, f"s{number % 20 + 1}", ready=random.random() < 0.5)
                last[pod.uid] = pod
                node.tell(pod)
                events += 1
            if events % 500 == 0:
                await asyncio.sleep(0)
        await node.has(services, list(last.values()))

    asyncio.run(node.within(body))

    assert isinstance(node.kernel.rules, Ruleset)
    assert node.kernel.writes <= events / 20
