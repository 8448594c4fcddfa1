"""The engine hangs, is slow, or tells less than it has: nothing is undone for that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.lab.dockerd import private_engine
from tests.lab.engine_proxy import EngineProxy, engine_proxy
from tests.lab.node import Node, Seen, kubelet_on, pod

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
PODS = tuple(f"web{number}" for number in range(5))
# The worst of a look's period, its deadline, and a busy machine.
NOTICED_SECONDS = 30.0
# Threads of the engine's client, its pulls and its own question, and asyncio's default pool.
MOST_THREADS = 12 + 4 + 2 + min(32, (os.cpu_count() or 1) + 4) + 12
MOST_OPEN = 12 + 4 + 2
PROBE = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 1}


@dataclass
class Trouble:
    """A node whose engine stands behind a proxy."""

    node: Node
    proxy: EngineProxy


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trouble() -> AsyncIterator[Trouble]:
    """Run pods, one of which asks the engine for its liveness every second."""
    with private_engine() as engine:
        async with (
            engine_proxy(engine.folder / "p.sock", engine.socket) as proxy,
            kubelet_on(engine, proxy.host) as node,
        ):
            await node.start()
            await node.condition("Ready", holds=True)
            await node.apply(*map(pod, PODS), pod("probed", container={"livenessProbe": PROBE}))
            for name in (*PODS, "probed"):
                await node.ready(name)
            yield Trouble(node, proxy)


async def _unchanged(made: Trouble, before: dict[str, Seen]) -> None:
    """Check that everybody lived through it, that the node works again, and that nothing is left."""
    await made.node.condition("Ready", holds=True, seconds=60)
    assert await made.node.snapshot() == before
    await made.node.clean()
    running = await made.node.docker("ps", "-q")
    everything = await made.node.docker("ps", "-aq")
    assert len(running.split()) == 2 * len(before)
    assert running == everything


async def _looked_again(made: Trouble) -> None:
    """Wait until the kubelet has looked at its containers a few times."""
    path, begin = "/containers/json", len(made.proxy.asked)

    async def holds() -> bool:
        lists = [line for line in made.proxy.asked[begin:] if path in line]
        return len(lists) >= 5

    await made.node.until(holds, "the kubelet looks again")


@pytest.mark.fault("F8")
async def test_an_engine_that_hangs_is_told_and_nothing_is_held_for_dead(trouble: Trouble) -> None:
    """The node is not ready within half a minute, waits in bounded numbers, and goes on as before."""
    node = trouble.node
    before = await node.snapshot()

    await asyncio.to_thread(node.engine.freeze)
    try:
        message = await node.condition("Ready", holds=False, seconds=NOTICED_SECONDS)
        told = await node.pods()
        await _waits_in_bounded_numbers(trouble)
    finally:
        await asyncio.to_thread(node.engine.thaw)

    assert "RuntimeReady is false" in message or "does not answer" in message
    assert all(found.ready for found in told.values())
    await _unchanged(trouble, before)
    assert "Killing" not in {event.reason for event in await node.events("probed")}


async def _waits_in_bounded_numbers(made: Trouble) -> None:
    """Watch the kubelet beyond the deadline of its first looks, while the engine hangs."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 12
    status = Path(f"/proc/{made.node.service.pid}/status")
    seen: list[int] = []

    async def over() -> bool:
        text = await asyncio.to_thread(status.read_text)
        seen.append(int(text.partition("Threads:")[2].split()[0]))
        return loop.time() > until

    await made.node.until(over, "the deadline of looks has passed")
    assert max(seen) <= MOST_THREADS
    assert made.proxy.most_open_count <= MOST_OPEN


@pytest.mark.fault("F9")
async def test_a_slow_engine_is_a_healthy_one(trouble: Trouble) -> None:
    """With two seconds for each call a pod starts, the node stays ready and asks in bounded numbers."""
    node, proxy = trouble.node, trouble.proxy
    before = await node.snapshot()
    proxy.most_open_count = 0
    node.patience_seconds, proxy.delay_seconds = 120.0, 2.0
    try:
        await node.apply(pod("late"))
        late = await node.ready("late")
        ready = (await node.conditions())["Ready"]
    finally:
        proxy.delay_seconds, node.patience_seconds = 0.0, 60.0

    assert late.containers[0].restart_count == 0
    assert ready.message == "The kubelet runs pods"
    assert 1 < proxy.most_open_count <= MOST_OPEN
    await node.delete("late")
    await node.gone("late")
    await _unchanged(trouble, before)


def _empty(_path: str, _answer: list[Any]) -> list[Any]:
    return []


def _half(_path: str, answer: list[Any]) -> list[Any]:
    return answer[::2]


def _without_sandboxes(_path: str, answer: list[Any]) -> list[Any]:
    return [item for item in answer if item["Labels"].get("io.tripod.kind") != "podsandbox"]


@pytest.mark.fault("F10")
@pytest.mark.parametrize("edit", [_empty, _half, _without_sandboxes])
async def test_a_list_that_is_not_whole_undoes_nothing(
    trouble: Trouble, edit: Callable[[str, Any], Any]
) -> None:
    """Nothing is deleted, nothing started anew, no address released; the kubelet says what is wrong."""
    node, proxy = trouble.node, trouble.proxy
    before = await node.snapshot()
    proxy.edits = lambda method, path: method == "GET" and "/containers/json" in path
    proxy.edit = edit
    try:
        await _looked_again(trouble)
    finally:
        proxy.edit = None

    assert "ENGINE_LIST_INCOMPLETE" in node.service.tail()
    await _unchanged(trouble, before)


@pytest.mark.fault("F10")
async def test_a_kubelet_that_begins_with_an_empty_list_undoes_nothing(trouble: Trouble) -> None:
    """Nothing is known yet but the register, which says enough."""
    node, proxy = trouble.node, trouble.proxy
    before = await node.snapshot()
    await node.service.kill()
    proxy.edits = lambda method, path: method == "GET" and "/containers/json" in path
    proxy.edit = _empty
    try:
        await node.service.start()
        await _looked_again(trouble)
    finally:
        proxy.edit = None
    await node.until(lambda: _told(node, len(before)), "all pods are told of again")

    await _unchanged(trouble, before)


async def _told(node: Node, count: int) -> bool:
    return len(await node.pods()) == count


@pytest.mark.fault("F10")
async def test_a_failing_look_at_some_containers_undoes_nothing(trouble: Trouble) -> None:
    """The engine answers 500 for every second container that is inspected."""
    node, proxy = trouble.node, trouble.proxy
    before = await node.snapshot()
    cursed = {seen.container_id for seen in list(before.values())[::2]}
    proxy.refuse = lambda method, path: 500 if method == "GET" and any(name in path for name in cursed) else 0
    try:
        await _looked_again(trouble)
    finally:
        proxy.refuse = lambda method, path: 0

    assert cursed
    await _unchanged(trouble, before)
