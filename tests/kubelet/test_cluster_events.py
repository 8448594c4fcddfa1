"""How events reach the API, and what a slow API costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.kubelet.core import node_events
from services.kubelet.loops import cluster_events
from services.kubelet.loops.cluster_events import EventReporter
from services.kubelet.loops.eventlog import EventLog
from tests.builders import a_pod
from tests.kubelet.cluster_world import NODE, World, a_world

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def reporting() -> AsyncIterator[tuple[World, EventLog, EventReporter]]:
    """Run a reporter for a block."""
    async with a_world() as world:
        events = EventLog(world.clock, "run")
        reporter = EventReporter(world.api, events.hub, world.clock, node=NODE, pod=lambda uid: None)
        async with world.running(reporter.run):
            yield world, events, reporter


async def test_an_event_that_happens_again_is_counted() -> None:
    """One object at the API, whose count and last time grow."""
    async with reporting() as (world, events, _):
        events.emit(a_pod(), "BackOff", "back-off", container="app", warning=True)
        await world.until(lambda: world.server.all("events"))
        events.emit(a_pod(), "BackOff", "back-off", container="app", warning=True)
        await world.until(lambda: world.server.all("events")[0]["count"] == 2)

        assert len(world.server.all("events")) == 1
        assert world.server.all("events")[0]["involvedObject"]["fieldPath"] == "spec.containers{app}"


async def test_an_event_that_the_api_forgot_is_made_anew() -> None:
    """The API forgets events after an hour."""
    async with reporting() as (world, events, _):
        events.emit(a_pod(), "BackOff", "back-off")
        await world.until(lambda: world.server.all("events"))
        name = world.server.all("events")[0]["metadata"]["name"]
        world.server.remove("events", "default", name)

        events.emit(a_pod(), "BackOff", "back-off")
        await world.until(lambda: world.server.all("events"))

        assert world.server.all("events")[0]["count"] == 2


async def test_what_the_api_refuses_is_dropped_and_what_it_cannot_take_now_is_kept() -> None:
    """A refusal would be repeated for ever; a fault passes."""
    async with reporting() as (world, events, _):
        world.server.refuse(403, resource="events")
        world.server.refuse(500, times=3, resource="events")
        events.emit(a_pod(), "Refused", "no")
        events.emit(a_pod(), "Kept", "yes")
        await world.until(lambda: world.server.all("events"))

        assert [event["reason"] for event in world.server.all("events")] == ["Kept"]


async def test_a_slow_api_costs_a_bounded_queue() -> None:
    """Nobody waits for the API, and what does not fit is counted."""
    async with reporting() as (world, events, reporter):
        world.server.refuse(500, times=10_000, resource="events")
        for number in range(cluster_events.QUEUE + 200):
            events.emit(a_pod(uid=f"u-{number}"), "Started", "started")
            if number % 100 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)

        assert reporter.dropped_count >= 199


async def test_the_node_tells_its_own_start() -> None:
    """As the original does."""
    async with reporting() as (world, _, reporter):
        reporter.tell_node(node_events.STARTING)
        await world.until(lambda: world.server.all("events"))

        event = world.server.all("events")[0]
        assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": NODE}
        assert event["metadata"]["namespace"] == "default"


async def test_what_happens_to_the_node_again_is_counted() -> None:
    """A node that flaps has two events, not two for each time."""
    async with reporting() as (world, _, reporter):
        for _ in range(3):
            reporter.tell_node(node_events.of_scheduling(NODE, unschedulable=True))
        await world.until(lambda: [e["count"] for e in world.server.all("events")] == [3])

        assert world.server.all("events")[0]["reason"] == "NodeNotSchedulable"
