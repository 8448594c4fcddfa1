"""A TCP path between our services that dies without a word."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from services.common import grpcclient
from tests.matrix.process import ROOT

pytestmark = [pytest.mark.netns, pytest.mark.asyncio]
PORT = "50123"


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with a loopback."""
    name = f"ho{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.fault("F28")
async def test_both_ends_of_a_dead_path_notice_within_the_keepalive_time(namespace: str) -> None:
    """All packets of the path are dropped, both ways: nobody waits for an answer for ever."""
    inside = ("ip", "netns", "exec", namespace)
    running = await asyncio.create_subprocess_exec(
        *(*inside, sys.executable, "-m", "tests.lab.halfopen", PORT),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert running.stdout is not None
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(30):
            first = await running.stdout.readline()
        rules = "add table ip t; add chain ip t c { type filter hook output priority 0; };"
        rules += "".join(f" add rule ip t c tcp {end} {PORT} drop;" for end in ("dport", "sport"))
        await asyncio.to_thread(subprocess.run, [*inside, "nft", rules], check=True)
        begin = loop.time()
        async with asyncio.timeout(60):
            said = {(await running.stdout.readline()).decode().strip() for _ in range(2)}
        took = loop.time() - begin
        await running.wait()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()

    assert first == b"ready\n"
    assert said == {"client UNAVAILABLE", "server cancelled"}
    # The slack is for a busy machine.
    assert took < grpcclient.KEEPALIVE_SECONDS + grpcclient.KEEPALIVE_TIMEOUT_SECONDS + 15
