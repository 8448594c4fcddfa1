"""Pods that limit what they take of the disk are measured, and end when they take more."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import TripodError
from services.kubelet.core.memory import Over
from services.kubelet.core.model import ContainerId, Pod, PodUid, Resources, RestartPolicy
from services.kubelet.core.observed import RuntimeState
from services.kubelet.core.status import Circumstances, PodPhase, PodStatus, compute_status
from services.kubelet.loops.local_storage import LocalStorage
from tests.builders import a_container, a_pod, an_instance, observed
from tests.fakes.clock import FakeClock
from tests.fakes.runtime import FakeRuntime

pytestmark = pytest.mark.asyncio
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITED = a_pod(a_container(resources=Resources(other_limits=(("ephemeral-storage", 100),))))


class _Node:
    """One pod, its logs, and who was ended."""

    def __init__(self, pod: Pod, *, layer: int = 0, logs: int = 0, ended: bool = False) -> None:
        self.pod, self.logs, self.ended = pod, logs, ended
        self.over: list[str] = []
        self.runtime = FakeRuntime()
        self.runtime.layers[ContainerId("app-0")] = layer

    def pods(self) -> list[Pod]:
        return [self.pod]

    def statuses(self) -> Mapping[str, PodStatus]:
        around = Circumstances(readiness={}, waiting={}, host_ip="", now=NOW)
        state = RuntimeState.EXITED if self.ended else RuntimeState.RUNNING
        found = compute_status(self.pod, observed(an_instance(state)), around, None)
        return {self.pod.uid: found}

    async def sizes(self, folder: Path) -> Mapping[str, int]:
        return {"0.log": self.logs} if folder == Path("/state/pod-logs/default_web_uid-1/app") else {}

    async def usage_bytes(self, uid: PodUid, name: str) -> int:
        return 0

    def end(self, pod: Pod, over: Over) -> None:
        self.over.append(over.message)

    def watch(self) -> LocalStorage:
        node: Any = self
        return LocalStorage(
            node,
            self.statuses,
            self.runtime,
            node,
            node,
            clock=FakeClock(),
            state_directory=Path("/state"),
            end=self.end,
        )


@pytest.mark.parametrize(
    ("layer", "logs", "over"),
    [(100, 0, 0), (0, 101, 1), (60, 60, 1)],
    ids=["within", "logs-beyond", "together-beyond"],
)
async def test_a_layer_and_logs_are_one(layer: int, logs: int, over: int) -> None:
    """Both lie on the node's disk."""
    node = _Node(LIMITED, layer=layer, logs=logs)
    await node.watch().look()

    assert len(node.over) == over


async def test_a_pod_without_a_limit_costs_nothing() -> None:
    """The runtime is not asked."""
    node = _Node(a_pod(), layer=1 << 40)
    await node.watch().look()

    assert (node.over, node.runtime.calls) == ([], [])


async def test_a_pod_that_has_ended_stays_as_it_ended() -> None:
    """Whatever it left."""
    pod = a_pod(*LIMITED.spec.containers, restart_policy=RestartPolicy.NEVER)
    node = _Node(pod, logs=101, ended=True)
    await node.watch().look()

    assert next(iter(node.statuses().values())).phase is PodPhase.SUCCEEDED
    assert node.over == []


async def test_what_cannot_be_measured_ends_nobody() -> None:
    """The next look may."""
    node = _Node(LIMITED, logs=101)
    node.runtime.down = True
    with pytest.raises(TripodError):
        await node.watch().look()

    assert node.over == []
