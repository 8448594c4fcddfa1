"""Which events a node's status brings."""

from __future__ import annotations

from typing import Any

import pytest

from services.kubelet.core import node_events
from services.kubelet.core.node_events import NodeEvent

WELL = {"MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False", "Ready": "True"}
SUFFICIENT = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"]


def a_status(boot: str = "b1", **conditions: str) -> dict[str, Any]:
    """Write a status as the API has it."""
    return {
        "conditions": [{"type": kind, "status": status} for kind, status in conditions.items()],
        "nodeInfo": {"bootID": boot},
    }


def reasons(before: dict[str, Any], after: dict[str, Any], *, first: bool = False) -> list[str]:
    """Name what is told."""
    return [event.reason for event in node_events.of_status("worker", before, after, first=first)]


@pytest.mark.parametrize(
    ("before", "after", "first", "expected"),
    [
        pytest.param({}, a_status(**WELL), True, [*SUFFICIENT, "NodeReady"], id="a-new-node"),
        pytest.param({}, a_status(**WELL | {"Ready": "False"}), True, SUFFICIENT, id="a-new-node-that-waits"),
        pytest.param(a_status(**WELL), a_status(**WELL), True, SUFFICIENT, id="a-new-run"),
        pytest.param(a_status(**WELL), a_status(**WELL), False, [], id="nothing-new"),
        pytest.param(
            a_status(**WELL), a_status(**WELL | {"Ready": "False"}), False, ["NodeNotReady"], id="unready"
        ),
        pytest.param(
            a_status(**dict.fromkeys(WELL, "Unknown")),
            a_status(**WELL),
            False,
            [*SUFFICIENT, "NodeReady"],
            id="back-after-the-cluster-had-lost-it",
        ),
        pytest.param(
            a_status(**WELL),
            a_status(**WELL | dict.fromkeys(("MemoryPressure", "DiskPressure", "PIDPressure"), "True")),
            False,
            ["NodeHasInsufficientMemory", "NodeHasDiskPressure", "NodeHasInsufficientPID"],
            id="under-pressure",
        ),
        pytest.param(a_status(**WELL), a_status("b2", **WELL), False, ["Rebooted"], id="rebooted"),
        pytest.param(a_status("", **WELL), a_status("b2", **WELL), False, [], id="first-boot-id"),
    ],
)
def test_changes_of_a_status_are_events(
    before: dict[str, Any], after: dict[str, Any], first: bool, expected: list[str]
) -> None:
    """With the original's reasons; the first status of a run tells of each pressure."""
    assert reasons(before, after, first=first) == expected


def test_events_have_the_words_and_types_of_the_original() -> None:
    """Only a reboot is a warning."""
    told = list(node_events.of_status("worker", a_status("b1"), a_status("b2", Ready="True"), first=False))

    assert told == [
        NodeEvent("Rebooted", "Node worker has been rebooted, boot id: b2", warning=True),
        NodeEvent("NodeReady", "Node worker status is now: NodeReady"),
    ]
    assert node_events.of_scheduling("worker", unschedulable=True) == NodeEvent(
        "NodeNotSchedulable", "Node worker status is now: NodeNotSchedulable"
    )
