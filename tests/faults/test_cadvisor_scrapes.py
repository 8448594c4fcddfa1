"""Scrapes: many, aborted, slow, compressed, and from a web page that has no business here."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from services.cadvisor.web import UI, application
from services.common import process
from services.common.httpserver import HttpServer
from tests.lab.cadvisor import a_container, a_snapshot
from tests.waiting import until

pytestmark = pytest.mark.asyncio
CONTAINERS = 200
SNAPSHOT = a_snapshot(*(a_container(number) for number in range(CONTAINERS)))


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    """Serve a snapshot of two hundred containers."""
    server = HttpServer(application(lambda: None, lambda: SNAPSHOT, lambda: [SNAPSHOT]), "127.0.0.1", 0)
    await server.start()
    yield server.port
    await server.stop()


async def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask once, on a connection of its own; the body is as it was sent."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        url = f"http://127.0.0.1:{port}{path}"
        async with session.get(url, headers={key.replace("_", "-"): v for key, v in headers.items()}) as got:
            return got.status, dict(got.headers), await got.read()


async def until_files(count: int) -> None:
    """Wait until no more than so many files are open."""
    await until(lambda: process.use().open_files <= count, 10)


@pytest.mark.fault("F46")
async def test_fifty_scrapes_at_once_get_one_rendering(port: int) -> None:
    """The page tells the open files of its moment, so two renderings under a storm would differ."""
    before = process.use().open_files
    plain = await asyncio.gather(*(get(port, "/metrics", Accept_Encoding="identity") for _ in range(50)))
    packed = await asyncio.gather(*(get(port, "/metrics", Accept_Encoding="gzip") for _ in range(50)))

    bodies = {body for _, _, body in plain}
    assert len(bodies) == 1
    assert {gzip.decompress(body) for _, _, body in packed} == bodies
    assert {headers["Content-Encoding"] for _, headers, _ in packed} == {"gzip"}
    await until_files(before)


async def half_a_scrape(port: int) -> asyncio.StreamWriter:
    """Ask for the page and read its first bytes alone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readexactly(100)
    return writer


@pytest.mark.fault("F46")
async def test_scrapes_that_are_aborted_half_way_leave_nothing(port: int) -> None:
    """Files, tasks and the page's bytes are let go with the connection."""
    await get(port, "/metrics")
    before = process.use()
    for _ in range(5):
        for writer in await asyncio.gather(*(half_a_scrape(port) for _ in range(20))):
            writer.transport.abort()

    await until_files(before.open_files)
    await until(lambda: process.use().tasks <= before.tasks, 10)
    assert (await get(port, "/metrics"))[0] == 200


@pytest.mark.fault("F46")
async def test_slow_readers_share_the_page(port: int) -> None:
    """Sixty that stop reading hold a piece each, not a copy each; others are served meanwhile."""
    _, _, body = await get(port, "/metrics", Accept_Encoding="identity")
    before = process.use().resident_bytes
    slow: list[Any] = await asyncio.gather(*(half_a_scrape(port) for _ in range(60)))
    status, _, _ = await get(port, "/metrics")
    grown = process.use().resident_bytes - before
    for writer in slow:
        writer.transport.abort()

    assert status == 200
    assert len(body) > 1_000_000
    assert grown < 60 * len(body) / 4


@pytest.mark.fault("S13")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:4194", 200),
        ("127.0.0.1", 200),
        ("127.8.8.8:4194", 200),
        ("[::1]:4194", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("evil.example:4194", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.7", 421),
        ("localhost:x", 421),
        ("1234", 421),
        ("a:b:c", 421),
    ],
)
async def test_a_web_page_cannot_reach_us_under_its_own_name(port: int, host: str, status: int) -> None:
    """DNS rebinding: the browser says the page's name, wherever it leads."""
    for path in ("/metrics", "/api/snapshots", "/"):
        assert (await get(port, path, Host=host))[0] == status


@pytest.mark.fault("S17")
async def test_paths_that_are_made_up_leave_no_series(port: int) -> None:
    """Nothing that a caller writes becomes a label."""
    _, _, before = await get(port, "/metrics", Accept_Encoding="identity")
    statuses = {(await get(port, f"/made-up-{number}"))[0] for number in range(50)}
    _, _, after = await get(port, "/metrics", Accept_Encoding="identity")

    assert statuses == {404}
    assert b"made-up" not in after
    assert after.count(b"\n") == before.count(b"\n")


@pytest.mark.fault("S46")
async def test_a_name_is_text_on_the_page() -> None:
    """Data travel as JSON that no browser takes for a page, and the page puts them in as text alone."""
    hostile = a_snapshot(a_container(1, name="<script>alert(1)</script>", pod="\x1b]0;x\x07"))
    server = HttpServer(application(lambda: None, lambda: hostile, lambda: [hostile]), "127.0.0.1", 0)
    await server.start()
    _, headers, body = await get(server.port, "/api/snapshots")
    _, page, _ = await get(server.port, "/")
    await server.stop()
    script = await asyncio.to_thread(Path(UI / "ui.js").read_text)

    assert headers["Content-Type"].startswith("application/json")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"\x1b" not in body
    assert "script-src 'self'" in page["Content-Security-Policy"]
    assert not [
        word for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write") if word in script
    ]
