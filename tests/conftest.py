"""What all tests share: fresh stubs, and a line for what cannot run here."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "gen")]
# The same examples each time, however slow the machine is; `HYPOTHESIS_PROFILE=search` looks for new ones.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
# The kubelet refuses manifests that a group may write; some systems give that by default.
os.umask(0o022)
# For the processes that tests start.
os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT}/gen"

from tools import gen_protos  # noqa: E402  # the path comes first

if gen_protos.stale() and "PYTEST_XDIST_WORKER" not in os.environ:
    gen_protos.generate()
    importlib.invalidate_caches()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, which pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


def _engine_answers() -> bool:
    try:
        found = subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs something that is absent, and say how to get it."""
    marks = {mark for item in items for mark in ("docker", "netns", "e2e") if item.get_closest_marker(mark)}
    reasons: dict[str, str] = {}
    if marks & {"docker", "e2e"} and not _engine_answers():
        reasons["docker"] = reasons["e2e"] = "no Docker Engine answers: run `make up`"
    if "netns" in marks and (os.geteuid() != 0 or shutil.which("ip") is None):
        reasons["netns"] = "needs root and iproute2: run `sudo make test`"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skipif(True, reason=reason))
