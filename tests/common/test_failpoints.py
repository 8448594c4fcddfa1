"""Failpoints: the grammar, the instants, and that nothing breaks unless it is allowed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import failpoints
from services.common.failpoints import FailpointError, FailpointSyntaxError

STEP = failpoints.step("test.step")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """Leave nothing armed."""
    yield
    failpoints.arm("", allowed=False)


async def walk() -> list[str]:
    """Go through the step; return how far it came."""
    reached = ["begin"]
    async with STEP:
        reached.append("effect")
    reached.append("after")
    await STEP.recorded()
    reached.append("recorded")
    return reached


def test_nothing_is_armed_by_default() -> None:
    """A step is only its effect."""
    assert asyncio.run(walk()) == ["begin", "effect", "after", "recorded"]


@pytest.mark.parametrize("position", failpoints.POSITIONS)
def test_an_error_comes_at_its_instant(position: str) -> None:
    """And names the failpoint."""
    failpoints.arm(f"test.step.{position}=error(no luck)", allowed=True)
    with pytest.raises(FailpointError, match="no luck") as caught:
        asyncio.run(walk())

    assert caught.value.metadata == {"failpoint": f"test.step.{position}"}


@pytest.mark.parametrize("terms", ["2*off->1*error->off", "2*off->1*error"])
def test_counts_run_out_in_order(terms: str) -> None:
    """Two passes free, one that fails, then free for ever."""
    failpoints.arm(f"test.step.after={terms}", allowed=True)
    seen = []
    for _ in range(5):
        try:
            asyncio.run(walk())
            seen.append("free")
        except FailpointError:
            seen.append("failed")

    assert seen == ["free", "free", "failed", "free", "free"]


def test_a_step_in_a_thread_has_the_same_instants() -> None:
    """With `with` in place of `async with`."""
    failpoints.arm("test.step.after=drop_reply", allowed=True)
    done = False
    with pytest.raises(FailpointError) as caught:
        with STEP:
            done = True

    assert done
    assert caught.value.reason == "REPLY_DROPPED"


def test_the_instant_after_is_not_passed_by_a_failed_effect() -> None:
    """What failed has no result to lose."""
    failpoints.arm("test.step.after=error", allowed=True)
    with pytest.raises(ValueError, match="own"):
        with STEP:
            raise ValueError("own")


def test_a_log_names_every_instant_in_order(tmp_path: Path) -> None:
    """So a test can list them from a real run."""
    failpoints.arm(f"*=log({tmp_path}/log)", allowed=True)
    asyncio.run(walk())

    assert (tmp_path / "log").read_text().split() == [f"test.step.{p}" for p in failpoints.POSITIONS]


def test_kill_is_a_real_signal() -> None:
    """SIGKILL: no clean-up runs."""
    words = (
        "from services.common import failpoints as f\n"
        "s = f.step('x'); f.arm('x.before=kill', allowed=True)\n"
        "try:\n  s.__enter__()\nfinally:\n  print('cleaned up')"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, check=False)

    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("test.step.before", "not of the form", id="no-action"),
        pytest.param("test.step.before=explode", "none of off, error", id="unknown-action"),
        pytest.param("test.step.before=delay", "needs milliseconds", id="delay-without-a-number"),
        pytest.param("test.step.begin=off", "No such failpoint: test.step.begin", id="unknown-instant"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    """With the entry in the message."""
    with pytest.raises(FailpointSyntaxError, match=message):
        failpoints.arm(text, allowed=True)


def test_failpoints_need_permission() -> None:
    """A variable left behind breaks nothing: the service does not start."""
    with pytest.raises(FailpointSyntaxError, match="allow_failpoints"):
        failpoints.arm("test.step.before=off", allowed=False)


def test_a_step_is_declared_once() -> None:
    """Two steps of one name could not be told apart."""
    with pytest.raises(ValueError, match="twice"):
        failpoints.step("test.step")
