"""One cluster of two nodes for all tests here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.lab.cluster import Cluster, cluster
from tests.lab.dockerd import EngineUnavailable


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def made() -> AsyncIterator[Cluster]:
    """Run a control plane and two nodes."""
    try:
        async with cluster("a", "b") as found:
            yield found
    except EngineUnavailable as error:
        pytest.skip(str(error))
