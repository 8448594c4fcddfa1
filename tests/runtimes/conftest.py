"""One kubelet after the other: on our CRI server over Docker, and on Debian's containerd."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.lab.containerd import private_containerd
from tests.lab.dockerd import EngineUnavailable
from tests.lab.node import BareNode, kubelet_in, network_namespace, node

RUNTIMES = ("our-cri-server", "containerd")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=RUNTIMES)
async def made(request: pytest.FixtureRequest) -> AsyncIterator[BareNode]:
    """Run a node whose kubelet uses each runtime in turn."""
    try:
        if request.param == "containerd":
            async with network_namespace() as netns:
                with private_containerd(netns) as peer:
                    settings = {"TRIPOD_CRI_ENDPOINT": peer.endpoint}
                    async with kubelet_in(netns, "unix:///nobody", settings) as found:
                        found.unaudited = frozenset({"runtime"})
                        await found.start()
                        await found.condition("Ready", holds=True)
                        yield found
                        await found.delete_all()
                        assert peer.ctr("containers", "list", "-q").stdout == b""
        else:
            async with node() as found:
                await found.condition("Ready", holds=True)
                yield found
                await found.delete_all()
    except EngineUnavailable as error:
        pytest.skip(str(error))
