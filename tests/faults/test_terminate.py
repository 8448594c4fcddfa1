"""SIGTERM at any step: an orderly end within 8 s, also where the service hangs just then.

A sample; `python -m tests.matrix --signal TERM` and `--signal TERM-HANG` go through every instant.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.kubelet import KubeletMatrix
from tests.matrix.process import MANNERS, Service
from tests.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.asyncio, pytest.mark.fault("F32")]
LIMIT_SECONDS = 8.0


@pytest.mark.timeout(300)
async def test_a_kubelet_that_is_told_to_end_amid_a_pods_life_leaves_it_as_it_was(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bystander is the same container, the story goes on in the next life, nothing is made twice."""
    matrix = KubeletMatrix(short_path)
    passed = {instant for instant, _ in await matrix.instants()}
    struck = {
        "pod.container.create.after": "TERM",
        "store.apply.after": "TERM",
        "pod.sandbox.create.before": "TERM-HANG",
    }
    reached = []
    for instant, manner in struck.items():
        monkeypatch.setattr(Service, "manner", MANNERS[manner])
        reached.append(await matrix.run(instant, 1))

    assert struck.keys() <= passed
    assert reached == [True, True, True]


@pytest.mark.parametrize(
    ("failpoint", "codes"),
    [
        pytest.param("snapshot.publish.before=1*term", {0}, id="amid-a-snapshot"),
        pytest.param("cgroups.sample.after=1*term", {0}, id="amid-a-sample"),
        pytest.param("snapshot.publish.before=1*term(hang)", {0}, id="a-hanging-task"),
        pytest.param("cgroups.discover.before=1*term(hang)", {0, 1}, id="a-hanging-thread"),
    ],
)
async def test_cadvisor_ends_in_time_at_any_step(tmp_path: Path, failpoint: str, codes: set[int]) -> None:
    """Exit code 0; 1 only where a thread hangs in the kernel."""
    environment = {
        "TRIPOD_RUN_DIRECTORY": str(tmp_path),
        "TRIPOD_CRI_ADDRESS": f"unix://{tmp_path}/nobody",
    }
    service = Service("cadvisor", tmp_path, environment)
    await service.start(failpoint)
    try:
        await until(lambda: "Ending on a signal" in service.log.read_text(), 60)
        code = await service.ended(LIMIT_SECONDS + 4)
    finally:
        await service.kill()

    assert code in codes, service.tail()
