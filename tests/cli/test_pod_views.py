"""Pods of every stage, as a person sees them listed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cli.views import describe_pod, pod_state, pods

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIDE = {"name": "side", "image": "s:1", "restartPolicy": "Always"}
DONE = {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}, "ready": True}
BEGINS: dict[str, Any] = {"state": {"waiting": {"reason": "PodInitializing"}}}
RUNS: dict[str, Any] = {"state": {"running": {}}}


def a_pod(*initial: dict[str, Any], initialized: bool = False, **status: Any) -> dict[str, Any]:
    """Write a pod of the init containers `one` and `side`, and `app`."""
    names = ("one", "side")
    return {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "initContainers": [{"name": "one", "image": "o:1"}, SIDE],
            "containers": [{"name": "app", "image": "a:1"}],
        },
        "status": {
            "phase": "Pending",
            "initContainerStatuses": [{"name": n, **s} for n, s in zip(names, initial, strict=True)],
            "containerStatuses": [{"name": "app", **BEGINS}],
            "conditions": [{"type": "Initialized", "status": str(initialized)}],
            **status,
        },
    }


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(a_pod(RUNS, BEGINS), "Init:0/2", id="the-first-runs"),
        pytest.param(a_pod(DONE, RUNS), "Init:1/2", id="the-sidecar-has-not-started"),
        pytest.param(
            a_pod({"state": {"waiting": {"reason": "CrashLoopBackOff"}}}, BEGINS),
            "Init:CrashLoopBackOff",
            id="the-first-fails",
        ),
        pytest.param(a_pod(DONE, {**RUNS, "started": True}), "PodInitializing", id="the-main-one-is-made"),
        pytest.param(
            a_pod(DONE, RUNS, initialized=True, phase="Failed", reason="DeadlineExceeded"),
            "DeadlineExceeded",
            id="its-time-is-up",
        ),
    ],
)
def test_a_pod_that_begins_says_how_far_it_is(pod: dict[str, Any], expected: str) -> None:
    """As kubectl does."""
    assert pod_state(pod) == expected


def test_sidecars_count_among_the_ready() -> None:
    """Plain init containers do not."""
    sidecar = {**RUNS, "started": True, "ready": True}
    listed = pods([a_pod(DONE, sidecar, initialized=True)], NOW, wide=False, namespaces=False)

    assert "1/2" in listed


def test_every_container_is_described() -> None:
    """Each kind under its title."""
    text = describe_pod(a_pod(DONE, RUNS), [], NOW)

    assert text.index("Init containers:") < text.index("  one:") < text.index("  side:")
    assert text.index("  side:") < text.index("\nContainers:") < text.index("  app:")
    assert "Ephemeral containers:" not in text
