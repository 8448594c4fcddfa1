"""Which log files are kept."""

from __future__ import annotations

from datetime import UTC, datetime

from services.kubelet.core import log_files
from services.kubelet.core.log_files import LogLimits

NAMES = ("3.log", "3.log.20260101-000002", "3.log.20260101-000001", "13.log.20260101-000000", "2.log", "note")


def test_a_rotated_file_sorts_by_its_time() -> None:
    """So the oldest is the first to go."""
    name = log_files.rotated_name("3.log", datetime(2026, 1, 1, 0, 0, 3, tzinfo=UTC))

    assert log_files.rotated((name, *NAMES), "3.log") == [
        "3.log.20260101-000001",
        "3.log.20260101-000002",
        "3.log.20260101-000003",
    ]


def test_only_the_oldest_beyond_the_limit_are_surplus() -> None:
    """The file that is written counts as one."""
    assert log_files.surplus(NAMES, "3.log", LogLimits(file_count=3)) == []
    assert log_files.surplus(NAMES, "3.log", LogLimits(file_count=2)) == ["3.log.20260101-000001"]


def test_logs_of_instances_that_nobody_can_read_are_outlived() -> None:
    """The present instance and the one before it keep theirs; what is no log stays."""
    assert log_files.outlived(NAMES, 3) == []
    assert log_files.outlived(NAMES, 4) == ["2.log"]
    assert "note" not in log_files.outlived(NAMES, 99)
