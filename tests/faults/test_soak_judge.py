"""How the soak judges what a process holds before and after a phase of load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.judge import GROWTH_LIMIT_BYTES, SLACK, compare
from tests.soak.node import Held
from tests.soak.state import Tally

QUIET = Held(open_files=60, threads=20, tasks=100, resident_bytes=90 << 20)


def violations(tmp_path: Path, after: Held, *, memory: bool = True) -> list[str]:
    """Compare with a quiet moment."""
    tally = Tally(seed=1, journal=tmp_path / "journal.txt")
    compare({"kubelet": QUIET}, {"kubelet": after}, tally, memory=memory)
    return tally.violations


@pytest.mark.parametrize("what", sorted(SLACK))
def test_more_than_the_slack_is_a_leak(what: str, tmp_path: Path) -> None:
    """Files, threads and tasks each have theirs."""
    limit = getattr(QUIET, what) + SLACK[what]

    assert violations(tmp_path, replace(QUIET, **{what: limit})) == []
    assert len(violations(tmp_path, replace(QUIET, **{what: limit + 1}))) == 1


def test_memory_is_judged_after_a_warm_up_alone(tmp_path: Path) -> None:
    """A short soak ends while histories still fill."""
    grown = replace(QUIET, resident_bytes=QUIET.resident_bytes + GROWTH_LIMIT_BYTES + 1)

    assert len(violations(tmp_path, grown)) == 1
    assert violations(tmp_path, grown, memory=False) == []
