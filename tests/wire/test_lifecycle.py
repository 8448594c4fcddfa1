"""What begins and ends in a pod, through the whole kubelet: init containers, sidecars, hooks, last words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pb

from services.kubelet.core.model import PodUid
from services.kubelet.core.observed import RuntimeState
from tests.fakes.files import FakeFiles
from tests.fakes.kernel import MemoryKernel
from tests.fakes.runtime import FakeRuntime
from tests.wire.test_node import Node, running

pytestmark = pytest.mark.asyncio
TRUE, FALSE = {"exec": {"command": ["true"]}}, {"exec": {"command": ["false"]}}


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Run a node."""
    async with running(tmp_path, FakeRuntime(present=["app:1", "app:2"]), MemoryKernel()) as made:
        yield made


def container(name: str, **values: Any) -> dict[str, Any]:
    """Write a container."""
    return {"name": name, "image": "app:1", **values}


def a_pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Write a pod."""
    spec = {"containers": list(containers) or [container("app")], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}


SIDE = container("side", restartPolicy="Always")


def uid(node: Node) -> PodUid:
    """Return the pod's UID."""
    return node.store.pods()[0].uid


async def states(node: Node) -> dict[str, RuntimeState]:
    """Return the state of the newest instance of each container."""
    if not node.store.pods():
        return {}
    seen = await node.runtime.observe(uid(node))
    return {c.name: c.state for c in reversed(seen.containers)}


async def until_runs(node: Node, *names: str) -> None:
    """Wait until these containers run."""

    async def run() -> bool:
        found = await states(node)
        return all(found.get(name) is RuntimeState.RUNNING for name in names)

    await node.until(run)


async def until_phase(node: Node, phase: pb.PodPhase.ValueType) -> pb.Pod:
    """Wait for a phase of the pod."""
    found: list[pb.Pod] = []

    async def reached() -> bool:
        found[:] = [pod for pod in (await node.pods()).values() if pod.phase == phase]
        return bool(found)

    await node.until(reached)
    return found[0]


async def until_told(node: Node, reason: str) -> str:
    """Wait for an event; returns its message."""
    found: list[str] = []

    async def told() -> bool:
        found[:] = [event.message for event in node.events.events() if event.reason == reason]
        return bool(found)

    await node.until(told)
    return found[-1]


async def test_init_containers_run_in_order_before_the_main_ones(node: Node) -> None:
    """The pod is Pending meanwhile, and says what is initialized."""
    await node.apply(a_pod(initContainers=[container("one"), container("two")]))
    await until_runs(node, "one")
    first = await until_phase(node, pb.POD_PHASE_PENDING)
    node.runtime.end(uid(node), "one", 0)
    await until_runs(node, "two")
    alone = await states(node)
    node.runtime.end(uid(node), "two", 0)
    await node.until_ready("web")
    last = (await node.pods())["web"]

    assert [c.state.reason for c in (*first.init_containers, *first.containers)] == [
        "",
        "PodInitializing",
        "PodInitializing",
    ]
    conditions = {c.type: c for c in first.conditions}
    assert conditions["Initialized"].reason == "ContainersNotInitialized"
    assert conditions["Initialized"].message == "containers with incomplete status: [one two]"
    assert "app" not in alone
    assert [c.ready for c in last.init_containers] == [True, True]


async def test_the_time_of_an_init_container_is_in_the_trace_of_the_start(node: Node) -> None:
    """As a wait, not as a worker that was busy."""
    await node.apply(a_pod(initContainers=[container("one")]))
    await until_runs(node, "one")
    node.runtime.end(uid(node), "one", 0)
    await node.until_ready("web")
    trace_id = int((await node.pods())["web"].trace_id, 16)

    async def told() -> bool:
        return {"pod.start", "init.wait"} <= {span.name for span in node.traces.ring.spans(trace_id)}

    await node.until(told)


async def test_an_init_container_that_fails_is_tried_again(node: Node) -> None:
    """At once for the first time."""
    await node.apply(a_pod(initContainers=[container("one")]))
    await until_runs(node, "one")
    node.runtime.end(uid(node), "one", 1)
    await until_runs(node, "one")
    found = (await node.pods())["web"].init_containers[0]

    assert found.restart_count == 1
    assert "app" not in await states(node)


async def test_an_init_container_that_fails_for_good_fails_the_pod(node: Node) -> None:
    """And stops its sidecars."""
    await node.apply(a_pod(initContainers=[SIDE, container("one")], restartPolicy="Never"))
    await until_runs(node, "side", "one")
    node.runtime.end(uid(node), "one", 7)
    found = await until_phase(node, pb.POD_PHASE_FAILED)

    assert [c.state.exit_code for c in found.init_containers] == [143, 7]
    assert "app" not in await states(node)


async def test_a_sidecar_runs_beside_the_main_container_and_ends_after_it(node: Node) -> None:
    """It starts again when it ends, and keeps no pod from being done."""
    await node.apply(a_pod(initContainers=[SIDE], restartPolicy="Never"))
    await node.until_ready("web")
    node.runtime.end(uid(node), "side", 1)
    await until_runs(node, "side")
    await node.until_ready("web")
    node.runtime.end(uid(node), "app", 0)
    found = await until_phase(node, pb.POD_PHASE_SUCCEEDED)

    assert found.init_containers[0].restart_count == 1
    assert found.init_containers[0].state.phase == pb.CONTAINER_PHASE_TERMINATED


async def test_what_comes_after_a_sidecar_waits_for_its_hook(node: Node) -> None:
    """A hook that fails ends its container, which is started again."""
    sidecar = {**SIDE, "lifecycle": {"postStart": FALSE}}
    await node.apply(a_pod(initContainers=[sidecar, container("one")]))
    message = await until_told(node, "FailedPostStartHook")
    await until_told(node, "BackOff")

    assert message == "postStart hook failed: its command ended with exit code 1"
    assert "one" not in await states(node)


async def test_the_next_main_container_waits_for_a_hook(node: Node) -> None:
    """And the pod is ready when it has succeeded."""
    await node.apply(a_pod(container("app", lifecycle={"postStart": TRUE}), container("other")))
    await node.until_ready("web")
    found = (await node.pods())["web"]

    assert node.runtime.commands == [("true",)]
    assert [c.started for c in found.containers] == [True, True]


async def test_containers_stop_in_their_order_after_their_hooks(node: Node) -> None:
    """The main one, then the last sidecar, then the first; a hook takes its time off the grace."""
    hooks = {"lifecycle": {"preStop": TRUE}}
    second = container("second", restartPolicy="Always", **hooks)
    failing = container("app", lifecycle={"preStop": FALSE})
    await node.apply(a_pod(failing, initContainers=[SIDE, second], terminationGracePeriodSeconds=9))
    await node.until_ready("web")
    await node.delete("web")

    async def gone() -> bool:
        return not node.store.pods()

    await node.until(gone)

    assert node.runtime.stops == [("app", 9), ("second", 9), ("side", 9)]
    assert sorted(node.runtime.commands) == [("false",), ("true",)]
    assert await until_told(node, "FailedPreStopHook") == (
        "preStop hook failed: its command ended with exit code 1"
    )


async def test_a_hook_that_has_succeeded_does_not_run_again_after_a_restart(tmp_path: Path) -> None:
    """The record says so; without it the hook runs again."""
    runtime, files = FakeRuntime(present=["app:1"]), FakeFiles()
    pod = a_pod(container("app", lifecycle={"postStart": TRUE}))
    for expected, lost in ((1, False), (1, False), (2, True)):
        if lost:
            files.records.clear()
        async with running(tmp_path, runtime, MemoryKernel(), files) as node:
            await node.apply(pod)
            await node.until_ready("web")

            async def ran(count: int = expected) -> bool:
                return len(runtime.commands) == count

            await node.until(ran)
    assert len(runtime.made) == 1


async def test_a_pod_whose_time_is_up_fails(node: Node) -> None:
    """With the original's reason, and nothing of it runs on."""
    await node.apply(a_pod(initContainers=[SIDE], activeDeadlineSeconds=1))
    await node.until_ready("web")
    found = await until_phase(node, pb.POD_PHASE_FAILED)

    assert found.reason == "DeadlineExceeded"
    assert found.message == "Pod was active on the node longer than the specified deadline"
    assert set((await states(node)).values()) == {RuntimeState.EXITED}
    assert await until_told(node, "DeadlineExceeded") == found.message


async def test_the_last_words_of_a_container_are_told(node: Node) -> None:
    """In its state, and in its last state once it runs again."""
    await node.apply(a_pod())
    await node.until_ready("web")
    node.words.said[uid(node), "app", 0] = "out of cheese"
    node.runtime.end(uid(node), "app", 3)
    await node.until_ready("web")

    async def told() -> bool:
        found = (await node.pods())["web"].containers[0]
        return found.last_termination_state.message == "out of cheese"

    await node.until(told)


async def test_another_image_restarts_its_container_alone(node: Node) -> None:
    """Whatever the restart policy says; the sandbox stays."""
    await node.apply(a_pod(container("app"), container("other"), restartPolicy="Never"))
    await node.until_ready("web")
    await node.apply(a_pod(container("app", image="app:2"), container("other"), restartPolicy="Never"))

    async def restarted() -> bool:
        found = (await node.pods())["web"]
        return found.ready and found.containers[0].restart_count == 1

    await node.until(restarted)
    seen = await node.runtime.observe(uid(node))

    assert {c.name: c.image for c in reversed(seen.containers)} == {"app": "app:2", "other": "app:1"}
    assert len(seen.sandboxes) == 1
    killed = [e.message for e in node.events.events() if e.reason == "Killing"]
    assert killed == ["Container app definition changed, will be restarted"]


async def test_an_ephemeral_container_is_added_to_a_pod_that_runs(node: Node) -> None:
    """It sees the processes of its target, runs once, and changes nothing else."""
    await node.apply(a_pod())
    await node.until_ready("web")
    debug = container("debug", targetContainerName="app", tty=True, stdin=True, stdinOnce=True)
    await node.apply(a_pod(ephemeralContainers=[debug]))
    await until_runs(node, "debug")
    node.runtime.end(uid(node), "debug", 1)

    async def ended() -> bool:
        found = (await node.pods())["web"].ephemeral_containers
        return bool(found) and found[0].state.exit_code == 1

    await node.until(ended)
    found = (await node.pods())["web"]
    await node.apply(a_pod())

    assert found.ready
    assert found.ephemeral_containers[0].restart_count == 0
    app, looker = node.runtime.made
    assert looker.target == found.containers[0].container_id
    assert app.target is None
    assert [c.name for c in node.store.pods()[0].spec.ephemeral_containers] == ["debug"]
