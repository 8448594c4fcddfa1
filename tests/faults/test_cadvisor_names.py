"""A CRI server that hangs, and containers that nobody knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.cadvisor.core.model import Identity
from services.cadvisor.loops.names import ASK_SECONDS, Names
from services.cadvisor.loops.sampling import Sampler
from services.common.clock import SystemClock
from tests.fakes.clock import FakeClock
from tests.lab.cadvisor import FakeKernel, FakeNames, a_container

pytestmark = pytest.mark.asyncio
UNNAMED = a_container(1, name="", pod="")
KEY = UNNAMED.identity.id


@asynccontextmanager
async def running(names: Names) -> AsyncIterator[None]:
    """Let names be asked for, for a block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(names.run())
        yield
        task.cancel()


@pytest.mark.fault("F8")
async def test_a_cri_server_that_hangs_costs_names_and_never_samples() -> None:
    """Samples go on while the question is open; the names are there once it is answered."""
    metadata = FakeNames({KEY: Identity("", KEY, "app", "web")})
    names = Names(metadata, SystemClock())
    sampler = Sampler(FakeKernel(UNNAMED), names, SystemClock(), history=5)

    async with running(names), asyncio.timeout(ASK_SECONDS):
        pods = [(await sampler.sample()).containers[0].identity.pod for _ in range(3)]
        asked = metadata.asked
        metadata.answer.set()
        while not sampler.latest().containers[0].identity.pod:  # type: ignore[union-attr]  # there are some
            await sampler.sample()

    assert (pods, asked) == (["", "", ""], 1)
    assert names.error == ""


async def test_a_new_container_is_named_in_its_first_snapshot() -> None:
    """Else its series would begin under other labels."""
    metadata = FakeNames({KEY: Identity("", KEY, "app", "web")})
    metadata.answer.set()
    names = Names(metadata, SystemClock())
    sampler = Sampler(FakeKernel(UNNAMED), names, SystemClock(), history=5)

    async with running(names):
        first = await sampler.sample()

    assert first.containers[0].identity.pod == "web"


async def test_a_container_of_somebody_else_is_asked_for_ever_more_rarely() -> None:
    """A foreign container cost two calls a second; now it costs about ten in ten minutes."""
    clock, metadata = FakeClock(), FakeNames()
    metadata.answer.set()
    names = Names(metadata, clock)

    async with running(names):
        for _ in range(600):
            names.want({"stranger"})
            await clock.advance(1.0)
        rare = metadata.asked
        names.want({"stranger", "new"})
        await clock.settle()

    assert 8 <= rare <= 16
    assert metadata.asked == rare + 1


@pytest.mark.process
async def test_an_answer_that_does_not_come_is_told_and_asked_for_again() -> None:
    """The page says why there are no names."""
    metadata = FakeNames()
    names = Names(metadata, SystemClock())

    async with running(names), asyncio.timeout(30):
        names.want({"x"})
        await names.settled(ASK_SECONDS + 5)
        told = names.error
        metadata.answer.set()
        while names.error:
            names.want({"x"})
            await asyncio.sleep(0.05)

    assert told == "No names: no answer in 5 s"
    assert metadata.asked == 2
