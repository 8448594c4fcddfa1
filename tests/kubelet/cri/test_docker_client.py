"""The engine's client, against an engine of a few answers on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from services.kubelet.cri.docker_client import DockerClient

pytestmark = pytest.mark.asyncio


class Engine:
    """Answers two questions, and counts the connections that are open."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/engine.sock"
        self._path = folder / "engine.sock"
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/{version}/containers/{id}/json", self._inspect)
        self._runner = web.AppRunner(app)

    async def start(self) -> None:
        """Serve."""
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()

    async def stop(self) -> None:
        """End."""
        await self._runner.cleanup()

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10"})

    async def _inspect(self, request: web.Request) -> web.Response:
        return web.json_response({"Id": request.match_info["id"]})


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """Run an engine."""
    made = Engine(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def test_many_questions_take_one_connection_for_each_thread(engine: Engine) -> None:
    """docker-py keeps one for each URL: hundreds of open files on a node of many containers."""
    client = DockerClient(engine.host, deadline_seconds=5)
    try:
        asked = [str(number) * 8 for number in range(40)]
        answers = [await client.inspect(container_id) for container_id in asked]
        open_now = engine.connection_count
    finally:
        client.close()

    assert [answer and answer["Id"] for answer in answers] == asked
    assert 1 <= open_now <= 12
