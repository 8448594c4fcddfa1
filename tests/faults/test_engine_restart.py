"""The engine goes and comes back: with live-restore nobody notices, without it each pod restarts once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

from tests.lab.node import Node, node, pod

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
PODS = tuple(f"web{number}" for number in range(7))
COUNTER = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done"
# Ends at the engine's SIGTERM at once, as PID 1 must ask for.
OBEDIENT = ("sh", "-c", "trap 'exit 143' TERM; sleep 1000000 & wait")
# What the engine had read and not written when it was killed is lost with it: one line each time.
LOST_LINES = 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting() -> AsyncIterator[Node]:
    """Run eight pods on an engine with live-restore; one of them counts aloud."""
    async with node() as made:
        await made.apply(*map(pod, PODS), pod("counter", "sh", "-c", COUNTER))
        for name in (*PODS, "counter"):
            await made.ready(name)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def passing() -> AsyncIterator[Node]:
    """Run pods of every restart policy on an engine without live-restore."""
    async with node(live_restore=False) as made:
        await made.apply(
            pod("always0", *OBEDIENT),
            pod("always1", *OBEDIENT),
            pod("on-failure", *OBEDIENT, policy="OnFailure"),
            pod("never", *OBEDIENT, policy="Never"),
            pod("done", "true", policy="Never"),
            pod("done-well", "true", policy="OnFailure"),
            pod("failed", "false", policy="Never"),
        )
        for name in ("always0", "always1", "on-failure", "never"):
            await made.ready(name)
        await made.phase("done", pod_pb.POD_PHASE_SUCCEEDED)
        await made.phase("done-well", pod_pb.POD_PHASE_SUCCEEDED)
        await made.phase("failed", pod_pb.POD_PHASE_FAILED)
        yield made


async def _numbers(made: Node) -> list[int]:
    return [int(line) for line in await made.logs("counter")]


@pytest.mark.fault("F6")
@pytest.mark.parametrize("how", ["terminated", "killed", "terminated again", "killed again"])
async def test_an_engine_that_restarts_with_live_restore_is_not_noticed(lasting: Node, how: str) -> None:
    """Containers, start times, counts and addresses are those of before, and the log has every line."""
    before = await lasting.snapshot()
    counted = len(await _numbers(lasting))

    await asyncio.to_thread(lasting.engine.kill if "killed" in how else lasting.engine.terminate)
    await asyncio.to_thread(lasting.engine.start)

    async def counts_on() -> bool:
        return len(await _numbers(lasting)) > counted + 20

    await lasting.until(counts_on, "the log goes on")
    await lasting.condition("Ready", holds=True)
    numbers = await _numbers(lasting)
    after = await lasting.snapshot()
    addresses = [seen.addresses for seen in after.values()]
    assert after == before
    assert len(set(addresses)) == len(PODS) + 1
    assert numbers == sorted(set(numbers))
    assert numbers[-1] + 1 - len(numbers) <= LOST_LINES * ("killed" in how) + _lost_before(numbers, counted)
    await lasting.clean()


def _lost_before(numbers: list[int], count: int) -> int:
    """Return how many lines were missing among the first."""
    return numbers[count - 1] + 1 - count


@pytest.mark.fault("F7")
@pytest.mark.parametrize("how", ["killed", "terminated"])
async def test_an_engine_that_restarts_without_live_restore_restarts_each_pod_once(
    passing: Node, how: str
) -> None:
    """The count goes up by one and the reason is told; what had ended for good stays ended."""
    before = await passing.pods()
    again = ("always0", "always1", "on-failure")
    counts = {name: before[name].containers[0].restart_count for name in again}
    ended = {name: before[name].containers[0] for name in ("done", "done-well", "failed")}

    await asyncio.to_thread(passing.engine.kill if how == "killed" else passing.engine.terminate)
    await asyncio.to_thread(passing.engine.start)

    for name in again:
        found = await passing.ready(name, counts[name] + 1)
        last = found.containers[0].last_termination_state
        assert (last.phase, last.reason) == (pod_pb.CONTAINER_PHASE_TERMINATED, "Error")
        assert last.exit_code in (137, 143)
        reasons = {event.reason for event in await passing.events(name)}
        assert "SandboxChanged" in reasons
    await passing.phase("never", pod_pb.POD_PHASE_FAILED)
    await passing.clean()
    after = await passing.pods()
    assert {name: after[name].containers[0] for name in ended} == ended
    running = [after[name].pod_ips[0] for name in again]
    assert len(set(running)) == len(again)
