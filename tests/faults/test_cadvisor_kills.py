"""cAdvisor is killed while it reads and while it is scraped, again and again."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.cadvisor import cgroup
from tests.matrix.cadvisor import Cgroup, World, world
from tests.matrix.process import Service, until

pytestmark = [pytest.mark.netns, pytest.mark.asyncio, pytest.mark.timeout(180)]
KILLS = 5
COUNTERS = re.compile(r"_total$|failcnt$")
Series = tuple[str, tuple[tuple[str, str], ...]]


class Consumer:
    """Scrapes, and notes each counter that fell while the container's start time was the same."""

    def __init__(self, container_id: str) -> None:
        self._id = container_id
        self._last: dict[Series, float] = {}
        self._started = 0.0
        self.fallen: list[str] = []
        self.pages = 0

    def take(self, page: str) -> bool:
        """Read a page; tells whether the container is on it."""
        now: dict[Series, float] = {}
        started = 0.0
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.labels.get("name") != self._id:
                    continue
                if sample.name == "container_start_time_seconds":
                    started = sample.value
                # The names of pods may come later; the series is the container's.
                own = {k: v for k, v in sample.labels.items() if k in ("interface", "device", "cpu")}
                now[sample.name, tuple(sorted(own.items()))] = sample.value
        self._compare(now, started)
        self.pages += bool(now)
        return bool(now)

    def _compare(self, now: Mapping[Series, float], started: float) -> None:
        for key, value in now.items():
            if COUNTERS.search(key[0]) and started == self._started and value < self._last.get(key, 0.0):
                self.fallen.append(f"{key}: {self._last[key]} -> {value}")
        self._last.update(now)
        self._started = started or self._started


async def port_of(service: Service) -> int:
    """Return where the present life serves its pages; 0 while that is not known."""
    lines = await asyncio.to_thread(service.log.read_text)
    ports = re.findall(r'"address": "127\.0\.0\.1:(\d+)", "event": "Started HTTP server"', lines)
    return int(ports[-1]) if len(ports) == service.lives else 0


async def scrape(service: Service) -> str:
    """Return the page; empty when there is none."""
    port = await port_of(service)
    if not port:
        return ""
    try:
        async with asyncio.timeout(10), aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                return await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""


async def kill_while_scraped(made: World, consumer: Consumer) -> None:
    """Kill in the middle of a scrape; the next life must show the container again."""
    async with asyncio.TaskGroup() as group:
        scrapes = [group.create_task(scrape(made.service)) for _ in range(4)]
        await asyncio.wait(scrapes, timeout=0.01)
        await made.service.kill()
    for one in scrapes:
        if one.result():
            consumer.take(one.result())
    await made.service.start()

    async def shown() -> bool:
        return consumer.take(await scrape(made.service))

    await until(shown, "the container is on the page again", 60.0)


@pytest.mark.fault("F3")
async def test_a_kill_during_a_scrape_never_makes_a_counter_fall(tmp_path: Path) -> None:
    """Whoever scrapes sees counters that grow, over every kill; the files of each life are as many."""
    parent = f"tripod-kill-{secrets.token_hex(4)}"
    async with world(tmp_path / "world") as made:
        one = Cgroup(parent)
        made.name(one.id, "bystander")
        await asyncio.to_thread(one.make)
        try:
            await made.service.start()
            consumer = Consumer(one.id)

            async def shown() -> bool:
                return consumer.take(await scrape(made.service))

            await until(shown, "the container is on the page", 60.0)
            for _ in range(KILLS):
                await kill_while_scraped(made, consumer)
            with cgroup(parent) as passer_by:
                await made.sees(one.id, "bystander")
                del passer_by
            held: list[str] = []

            async def nothing_stale() -> bool:
                held[:] = await asyncio.to_thread(_stale, made.service.pid, one.id, parent)
                return not held

            await until(nothing_stale, f"the files of the passer-by are closed: {held}")
        finally:
            await asyncio.to_thread(one.remove)
        await made.service.terminate()

    assert consumer.fallen == []
    assert consumer.pages > KILLS


def _stale(pid: int, kept: str, parent: str) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if parent in target and kept not in target:
            found.append(target)
    return found
