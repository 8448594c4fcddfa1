"""In a cluster the API server says which handler a runtime class names."""

from __future__ import annotations

import pytest

from services.common.errors import Code, TripodError
from services.kubelet.adapters.runtime_classes import RuntimeClasses
from tests.kubelet.cluster_world import a_world

pytestmark = pytest.mark.asyncio


async def test_a_class_is_asked_for_once() -> None:
    """It cannot change, so pods start with it while the API server is away, after a reboot, too."""
    async with a_world() as world:
        world.server.put("runtimeclasses", {"metadata": {"name": "strict"}, "handler": "runsc"})
        classes = RuntimeClasses(world.api, world.memory)
        first = await classes.handler("strict")
        world.server.refuse(500, times=100)

        again = RuntimeClasses(world.api, world.memory)
        again.remember({"server": "https://api", **world.memory.facts})

        assert (first, await classes.handler("strict")) == ("runsc", "runsc")
        assert await again.handler("strict") == "runsc"


async def test_a_class_that_is_not_there_is_told() -> None:
    """And asked for again the next time."""
    async with a_world() as world:
        classes = RuntimeClasses(world.api, world.memory)
        with pytest.raises(TripodError, match=r'runtimeclass\.node\.k8s\.io "none" not found') as refused:
            await classes.handler("none")
        world.server.put("runtimeclasses", {"metadata": {"name": "none"}, "handler": "late"})

        assert refused.value.code is Code.NOT_FOUND
        assert await classes.handler("none") == "late"
