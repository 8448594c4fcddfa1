"""Tell containers among cgroups by their paths. Pure.

Known: `/docker/<id>` and `/kubepods/.../<id>` (cgroupfs driver), `docker-<id>.scope`,
`cri-containerd-<id>.scope` and `crio-<id>.scope` (systemd driver).
"""

from __future__ import annotations

import re

_ID = re.compile(r"(?:^|[-/])([0-9a-f]{64})(?:\.scope)?$")


def container_id(path: str) -> str:
    """Return the id of the container whose cgroup this is; empty for other cgroups."""
    match = _ID.search(path)
    return match[1] if match else ""
