"""Pulls: shared, watched, cancelled with the last who waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio

from services.common.errors import Code
from services.kubelet.cri.credentials import Credentials
from services.kubelet.cri.errors import CriError, EngineRefusedError
from services.kubelet.cri.pulls import PullCounts, Puller
from services.kubelet.cri.reference import parse
from services.kubelet.web.readonly import GAUGES

pytestmark = pytest.mark.asyncio
APP, OTHER = parse("r.example/app:1"), parse("r.example/other:1")
EVER = 1000.0


class FakeEngine:
    """Tells the lines that a test puts in; `None` ends a pull."""

    def __init__(self) -> None:
        self.lines: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self.pulls: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.refusal: EngineRefusedError | None = None

    async def pull(
        self, repository: str, tag: str, registry_auth: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Tell the lines."""
        self.pulls.append((repository, tag, registry_auth))
        if self.refusal:
            raise self.refusal
        self.open.append(repository)
        queue = self.lines.setdefault(repository, asyncio.Queue())
        try:
            while (line := await queue.get()) is not None:
                yield line
        finally:
            self.open.remove(repository)

    def tell(self, reference: object, status: str, current: int = 0) -> None:
        """Put a line in."""
        line = {"id": "l1", "status": status, "progressDetail": {"current": current, "total": 9}}
        self.lines.setdefault(str(reference).rpartition(":")[0], asyncio.Queue()).put_nowait(line)

    def end(self, reference: object) -> None:
        """End a pull."""
        self.lines.setdefault(str(reference).rpartition(":")[0], asyncio.Queue()).put_nowait(None)


class Bench:
    """A puller with a group for its work."""

    def __init__(self, group: asyncio.TaskGroup, *, stall: float = EVER, limit: float = EVER) -> None:
        self.group = group
        self.engine = FakeEngine()
        self.puller = Puller(self.engine, stall_seconds=stall, limit_seconds=limit)
        self.puller.bind(group)

    def pull(self, reference: Any = APP, credentials: Credentials | None = None) -> asyncio.Task[None]:
        """Begin a pull."""
        return self.group.create_task(_quiet(self.puller.pull("app:1", reference, credentials)))

    async def until(self, holds: Callable[[], object]) -> None:
        """Let others run until something holds."""
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110  # the condition is other tasks'
                await asyncio.sleep(0)


async def _quiet(pull: Any) -> None:
    """Keep an error from ending the group; the task's result is asked for by `failure`."""
    with suppress(CriError):
        await pull


@pytest_asyncio.fixture
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a group."""
    async with asyncio.TaskGroup() as made:
        yield made


async def test_the_same_pull_is_done_once(group: asyncio.TaskGroup) -> None:
    """For all who ask meanwhile; then anew."""
    bench = Bench(group)
    first, second = bench.pull(), bench.pull()
    await bench.until(lambda: bench.engine.open)
    bench.engine.end(APP)
    await asyncio.gather(first, second)
    again = bench.pull()
    bench.engine.end(APP)
    await again

    assert bench.engine.pulls == [("r.example/app", "1", "")] * 2
    assert bench.puller.counts.succeeded == 2


async def test_another_identity_pulls_for_itself(group: asyncio.TaskGroup) -> None:
    """Nobody gets an image by the credentials of others."""
    bench = Bench(group)
    pulls = [bench.pull(credentials=Credentials("ann", word)) for word in ("one1", "two2", "one1")]
    await bench.until(lambda: len(bench.engine.open) == 2)
    bench.engine.end(APP)
    bench.engine.end(APP)
    await asyncio.gather(*pulls)

    assert len({auth for _, _, auth in bench.engine.pulls}) == 2


async def test_a_pull_goes_on_while_anybody_waits(group: asyncio.TaskGroup) -> None:
    """And ends at the engine when the last one leaves."""
    bench = Bench(group)
    first, second = bench.pull(), bench.pull()
    await bench.until(lambda: bench.engine.open)
    first.cancel()
    await asyncio.wait([first])
    bench.engine.tell(APP, "Downloading", 1)
    await bench.until(lambda: bench.engine.lines["r.example/app"].empty())
    assert bench.engine.open == ["r.example/app"]

    second.cancel()
    await asyncio.wait([second])
    await bench.until(lambda: not bench.engine.open)
    assert (bench.puller.counts.cancelled, bench.puller.counts.running) == (1, 0)


async def test_a_pull_that_was_left_is_not_joined(group: asyncio.TaskGroup) -> None:
    """Who comes after begins anew."""
    bench = Bench(group)
    first = bench.pull()
    await bench.until(lambda: bench.engine.open)
    first.cancel()
    await asyncio.wait([first])
    second = bench.pull()
    bench.engine.end(APP)
    await second

    assert len(bench.engine.pulls) == 2
    assert bench.puller.counts.succeeded == 1


async def test_no_progress_fails_a_pull(group: asyncio.TaskGroup) -> None:
    """Lines that tell nothing new are none."""
    bench = Bench(group, stall=0.2)
    for _ in range(3):
        bench.engine.tell(APP, "Downloading", 1)
    with pytest.raises(CriError) as failed:
        await bench.puller.pull("app:1", APP, None)

    assert (failed.value.code, failed.value.reason) == (Code.DEADLINE_EXCEEDED, "IMAGE_PULL_STALLED")
    assert (bench.engine.open, bench.puller.counts.failed, bench.puller.counts.bytes) == ([], 1, 1)


async def test_progress_keeps_a_pull_alive_until_its_limit(group: asyncio.TaskGroup) -> None:
    """However slow it is; the limit is told apart."""
    bench = Bench(group, stall=EVER, limit=0.2)
    with pytest.raises(CriError) as failed:
        await bench.puller.pull("app:1", APP, None)

    assert failed.value.reason == "IMAGE_PULL_TIMEOUT"


@pytest.mark.process
async def test_a_queued_pull_lives_by_the_progress_of_others(group: asyncio.TaskGroup) -> None:
    """The engine loads a few layers at a time: waiting for them is no stall."""
    bench = Bench(group, stall=0.5)
    busy, waiting = bench.pull(APP), bench.pull(OTHER)
    bench.engine.tell(OTHER, "Waiting")
    loop = asyncio.get_running_loop()
    begun, current = loop.time(), 0
    while loop.time() < begun + 1.5:
        current += 1
        bench.engine.tell(APP, "Downloading", current)
        await bench.until(bench.engine.lines["r.example/app"].empty)
    bench.engine.end(APP)
    bench.engine.end(OTHER)
    await asyncio.gather(busy, waiting)

    assert (bench.puller.counts.succeeded, bench.puller.counts.failed) == (2, 0)


async def test_an_error_line_fails_a_pull_without_its_secrets(group: asyncio.TaskGroup) -> None:
    """Nor does its cause have them."""
    bench = Bench(group)
    bench.engine.lines["r.example/app"] = asyncio.Queue()
    bench.engine.lines["r.example/app"].put_nowait({"error": "unauthorized: not canary-7"})
    with pytest.raises(CriError) as failed:
        await bench.puller.pull("app:1", APP, Credentials("ann", "canary-7"))

    assert failed.value.reason == "IMAGE_UNAUTHORIZED"
    assert "canary" not in failed.value.message
    assert failed.value.__cause__ is None


async def test_an_engines_refusal_fails_a_pull_likewise(group: asyncio.TaskGroup) -> None:
    """The one that has a status of its own."""
    bench = Bench(group)
    bench.engine.refusal = EngineRefusedError("images.pull", 404, "manifest unknown")
    with pytest.raises(CriError) as failed:
        await bench.puller.pull("app:1", APP, None)

    assert (failed.value.code, failed.value.reason) == (Code.NOT_FOUND, "IMAGE_NOT_FOUND")
    assert bench.puller.counts.gauges()['tripod_cri_image_pulls_total{outcome="failed"}'] == 1


async def test_the_metrics_page_explains_every_count() -> None:
    """By its plain name."""
    plain = {name.partition("{")[0] for name in PullCounts().gauges()}

    assert plain == {name for name in GAUGES if name.startswith("tripod_cri_image_")}
