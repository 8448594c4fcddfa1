"""Routes to other nodes' pods while the proxy is killed.

The world is that of the kill matrix: a real proxy and an API server in a network namespace, whose
kernel has routes of other programs as well.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.matrix.proxy_cluster import ClusterProxyMatrix

pytestmark = pytest.mark.netns
SAMPLE = [
    ("cluster.service.receive.after", 4),
    ("cluster.slice.receive.before", 2),
    ("cluster.node.receive.recorded", 4),
    ("routes.write.before", 1),
    ("routes.write.after", 2),
    ("routes.write.before", 4),
]


@pytest.mark.fault("F2")
@pytest.mark.parametrize(("instant", "occurrence"), SAMPLE)
def test_a_kill_is_noticed_by_nobody(instant: str, occurrence: int, short_path: Path) -> None:
    """Rules and routes come to be as the API server tells, and others' routes stay."""
    assert asyncio.run(ClusterProxyMatrix(short_path).run(instant, occurrence))
