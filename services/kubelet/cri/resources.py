"""Resources of a container, in the engine's words and back. Pure.

Source: the CRI's `LinuxContainerResources`; zero means unset there. Not passed on, since the engine has no
word for them: limits of huge pages and the keys of `unified`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

SLICE = ".slice"


def engine(values: pb.LinuxContainerResources, *, negative_oom_scores: bool) -> dict[str, Any]:
    """Return the part of a container's host configuration."""
    made: dict[str, Any] = {"OomScoreAdj": oom_score(values.oom_score_adj, negative=negative_oom_scores)}
    pairs = {
        "CpuShares": values.cpu_shares,
        "CpuQuota": values.cpu_quota,
        "CpuPeriod": values.cpu_period,
        "Memory": values.memory_limit_in_bytes,
        "MemorySwap": values.memory_swap_limit_in_bytes or values.memory_limit_in_bytes,
        "CpusetCpus": values.cpuset_cpus,
        "CpusetMems": values.cpuset_mems,
    }
    made.update({name: value for name, value in pairs.items() if value})
    return made


def oom_score(wanted: int, *, negative: bool) -> int:
    """Clamp a score to what the host allows: a negative one needs CAP_SYS_RESOURCE."""
    return wanted if negative else max(0, wanted)


def status(host: Mapping[str, Any]) -> pb.ContainerResources:
    """Tell a container's resources back."""
    return pb.ContainerResources(
        linux=pb.LinuxContainerResources(
            cpu_period=host.get("CpuPeriod") or 0,
            cpu_quota=host.get("CpuQuota") or 0,
            cpu_shares=host.get("CpuShares") or 0,
            memory_limit_in_bytes=host.get("Memory") or 0,
            memory_swap_limit_in_bytes=host.get("MemorySwap") or 0,
            oom_score_adj=host.get("OomScoreAdj") or 0,
            cpuset_cpus=host.get("CpusetCpus") or "",
            cpuset_mems=host.get("CpusetMems") or "",
        )
    )


def cgroup_parent(wanted: str) -> str:
    """Return a parent cgroup as the engine takes it: of a systemd slice, the last part alone."""
    last = wanted.rstrip("/").rsplit("/", 1)[-1]
    return last if last.endswith(SLICE) else wanted
