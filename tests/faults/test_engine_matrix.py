"""A sample of the kill matrices; `python -m tests.matrix` runs them all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.dockerd import EngineUnavailable
from tests.matrix.cadvisor import CadvisorMatrix
from tests.matrix.cri import CriMatrix
from tests.matrix.engine import EngineMatrix
from tests.matrix.kubelet import KubeletMatrix
from tests.matrix.lifecycle import LifecycleMatrix
from tests.matrix.proxy import ProxyMatrix
from tests.matrix.proxy_cluster import ClusterProxyMatrix
from tests.matrix.runner import Matrix, run

pytestmark = [
    pytest.mark.docker,
    pytest.mark.fault("F1"),
    pytest.mark.asyncio,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder of a short path: sockets lie in it, whose paths have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="mx-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.mark.parametrize(
    ("kind", "sample"),
    [
        pytest.param(KubeletMatrix, 12, id="kubelet"),
        pytest.param(LifecycleMatrix, 12, id="lifecycle"),
        pytest.param(ProxyMatrix, 8, id="proxy", marks=[pytest.mark.netns, pytest.mark.fault("F2")]),
        pytest.param(
            ClusterProxyMatrix, 8, id="proxy-cluster", marks=[pytest.mark.netns, pytest.mark.fault("F2")]
        ),
        pytest.param(CadvisorMatrix, 6, id="cadvisor", marks=pytest.mark.fault("F3")),
        pytest.param(EngineMatrix, 6, id="engine"),
        pytest.param(CriMatrix, 6, id="cri"),
    ],
)
async def test_a_kill_at_any_instant_changes_nothing(
    kind: Callable[[Path], Matrix], sample: int, folder: Path
) -> None:
    """Killed at instants spread over the story, each service finds its way: same containers, no leak."""
    try:
        result = await run(kind(folder), sample=sample)
    except EngineUnavailable as error:
        pytest.skip(str(error))

    assert result.failures == []
    assert result.killed >= sample - len(result.unreached) > 0
    assert len(result.unreached) <= 1
