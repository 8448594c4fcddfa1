"""What nobody owns goes at the second look that finds it, logs too; all else stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.kubelet.core.model import Pod, PodUid
from services.kubelet.loops.housekeeping import Housekeeper
from tests.builders import a_pod
from tests.fakes.clock import FakeClock
from tests.fakes.runtime import FakeRuntime
from tests.lab.pod_files import disk_files

pytestmark = pytest.mark.asyncio


class Source:
    """Owns one pod. Implements what the housekeeper asks of a `PodSource`."""

    def pods(self) -> list[Pod]:
        """Return it."""
        return [a_pod(uid="uid-owned")]


async def test_logs_of_a_pod_that_nobody_knows_go_and_no_others(tmp_path: Path) -> None:
    """A runtime wrote them after the pod had gone; what is no pod's folder is not ours to remove."""
    names = ("default_web_uid-owned", "default_web_uid-orphan", "default_web_uid-spared", "lost+found")
    for name in names:
        (tmp_path / "pod-logs" / name / "app").mkdir(parents=True)
        (tmp_path / "pod-logs" / name / "app/0.log").write_text("a line")
    source: Any = Source()
    housekeeper = Housekeeper(source, FakeRuntime(), disk_files(tmp_path), FakeClock())
    housekeeper.spare([PodUid("uid-spared")])

    await housekeeper.clean()
    once = {path.name for path in (tmp_path / "pod-logs").iterdir()}  # a test's own
    await housekeeper.clean()
    twice = {path.name for path in (tmp_path / "pod-logs").iterdir()}  # a test's own

    assert once == set(names)
    assert twice == set(names) - {"default_web_uid-orphan"}
