"""Health check ports of services, over real loopback."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from services.proxy.adapters.health_ports import HttpHealthPorts
from services.proxy.core.health import PortHealth

pytestmark = pytest.mark.asyncio


async def test_a_port_that_is_taken_is_served_once_it_is_free() -> None:
    """It is tried again at each change, and the tries that failed leave nothing."""
    ports = HttpHealthPorts(lambda: True)
    try:
        with socket.create_server(("0.0.0.0", 0)) as taken:
            number = taken.getsockname()[1]
            for _ in range(3):
                await ports.serve({number: PortHealth("default", "web", 1)})
            faults = set(ports.faults)
        await ports.serve({number: PortHealth("default", "web", 1)})
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{number}/") as answer:
            status = answer.status

        assert (faults, ports.faults, status) == ({number}, {}, 200)
        assert ports._runner is not None
        assert len(ports._runner.sites) == 1
    finally:
        await ports.close()
