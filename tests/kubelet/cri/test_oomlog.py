"""What the kernel's log tells of containers without memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.kubelet.cri.oomlog import OomLog, killed_ids

ONE, TWO = "1" * 64, "2" * 64


def line(cgroup: str) -> str:
    """Write a kill as the kernel does."""
    return (
        "4,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,"
        f"oom_memcg=/pods,task_memcg={cgroup},task=dd,pid=7,uid=0"
    )


@pytest.mark.parametrize("cgroup", [f"/docker/{ONE}", f"/test.slice/docker-{ONE}.scope", f"/kube/a/{ONE}"])
def test_a_kill_names_the_container(cgroup: str) -> None:
    """With every cgroup driver; other lines are left alone."""
    assert killed_ids(iter(["6,1,1,-;usb 1-1: new", line(cgroup), "6,1,3,-;" + TWO])) == {ONE}


def test_a_container_is_looked_up_in_the_log(tmp_path: Path) -> None:
    """A log that may not be read tells of nobody."""
    log = tmp_path / "kmsg"
    log.write_text(line(f"/docker/{ONE}"))

    assert OomLog(log).killed(ONE)
    assert not OomLog(log).killed(TWO)
    assert not OomLog(tmp_path / "none").killed(ONE)


@pytest.mark.parametrize(
    ("state", "memory", "expected"),
    [
        ({"Status": "exited", "ExitCode": 137}, 1, True),
        ({"Status": "exited", "ExitCode": 137}, 0, False),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, 1, False),
        ({"Status": "exited", "ExitCode": 1}, 1, False),
        ({"Status": "running", "ExitCode": 0}, 1, False),
    ],
)
def test_only_a_doubtful_end_is_looked_up(state: dict[str, Any], memory: int, *, expected: bool) -> None:
    """One by KILL, under a limit, of which the engine says no more."""
    assert OomLog().doubtful({"State": state, "HostConfig": {"Memory": memory}}) is expected
