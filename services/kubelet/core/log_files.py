"""Which log files of a container to keep. Pure.

A container's folder has `ATTEMPT.log` for each instance, and beside the one that is
written `ATTEMPT.log.TIME` for what was rotated away. Kept are the two newest
instances, since nobody can read others, and of one instance `file_count` files.
Source: the kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

_NAME = re.compile(r"(\d+)\.log(?:\.(\d{8}-\d{6}))?")


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How large one file may grow before it is rotated, and how many files an instance may have."""

    file_bytes: int = 10 << 20
    file_count: int = 5


def rotated_name(active: str, now: datetime) -> str:
    """Name what is rotated away now."""
    return f"{active}.{now:%Y%m%d-%H%M%S}"


def rotated(names: Collection[str], active: str) -> list[str]:
    """Return what was rotated away of a file, the oldest first."""
    matches = {name: _NAME.fullmatch(name) for name in names}
    return sorted(name for name, m in matches.items() if m and m[2] and name.startswith(f"{active}."))


def surplus(names: Collection[str], active: str, limits: LogLimits) -> list[str]:
    """Return the rotated files that are too many beside the one that is written."""
    found = rotated(names, active)
    return found[: max(0, len(found) - (limits.file_count - 1))]


def outlived(names: Collection[str], attempt: int) -> list[str]:
    """Return the files of instances before the one before `attempt`."""
    matches = {name: _NAME.fullmatch(name) for name in names}
    return sorted(name for name, m in matches.items() if m and int(m[1]) < attempt - 1)
