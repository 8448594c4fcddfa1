"""Keeps nodes in network namespaces until it is told to end: `python -m tests.lab.nodes FOLDER COUNT`.

FOLDER is a cluster's, as `tools.cluster.up` makes it. A switch is there first, and this host's address on it
is written to FOLDER/network; the nodes join once the API server is ready. SIGTERM ends and removes all of it.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from tests.lab.cluster import Ground, cluster_node
from tests.lab.dockerd import PrivateEngine, private_engine
from tests.lab.network import LabNetwork, lab_network
from tools.cluster.component import api_ready
from tools.cluster.layout import Layout
from tools.images import DEMO_IMAGE

_NETWORK = 254


async def keep(folder: Path, count: int) -> None:
    """Run the nodes until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(lab_network(_NETWORK))
        (folder / "network").write_text(network.host)
        layout = Layout(folder, network.host)
        while not ended.is_set() and await asyncio.to_thread(_not_ready, layout):
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.2)
        for place in range(1, count + 1):
            if not ended.is_set():
                await _node(stack, f"node-{place}", layout, network)
        await ended.wait()


def _not_ready(layout: Layout) -> bool:
    return not layout.admin.exists() or bool(api_ready(layout))


async def _node(stack: AsyncExitStack, name: str, layout: Layout, network: LabNetwork) -> None:
    engine = await asyncio.to_thread(stack.enter_context, private_engine())
    await asyncio.to_thread(_give_demo_image, engine)
    logs = layout.folder / "logs"
    logs.mkdir(exist_ok=True)
    shutil.rmtree(logs / name, ignore_errors=True)
    await stack.enter_async_context(cluster_node(name, Ground(layout, network, engine, logs)))


def _give_demo_image(engine: PrivateEngine) -> None:
    """Give a node the image of the examples, which no registry has."""
    saved = subprocess.run(["docker", "save", DEMO_IMAGE], capture_output=True, check=False)
    if saved.returncode == 0:
        engine.docker("load", data=saved.stdout)


if __name__ == "__main__":
    asyncio.run(keep(Path(sys.argv[1]), int(sys.argv[2])))
