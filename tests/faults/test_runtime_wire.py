"""A kubelet whose runtime loses answers, answers slowly, or leaves things out of its lists."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as cri

from services.common.errors import Code
from tests.fakes.cri_server import FakeCri
from tests.lab.faultproxy import Delay, DropReply, Duplicate, Error, Fault, Hang, edit
from tests.lab.kubelet import IMAGES, POD_LABEL, RUNTIME, FaultyNode, faulty_node, manifest
from tests.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]
IMAGE = "app:1"
LISTS = (f"{RUNTIME}/ListPodSandbox", f"{RUNTIME}/ListContainers")
STATUSES = (f"{RUNTIME}/PodSandboxStatus", f"{RUNTIME}/ContainerStatus")
FAULTS: dict[str, Fault] = {
    "lost": DropReply(),
    "late": DropReply(Code.DEADLINE_EXCEEDED),
    "twice": Duplicate(),
}
STARTING = ("RunPodSandbox", "PullImage", "CreateContainer", "StartContainer", "RemoveContainer")
ENDING = ("StopContainer", "StopPodSandbox", "RemovePodSandbox")


def method(name: str) -> str:
    """Return a call's full name."""
    return f"{IMAGES if name == 'PullImage' else RUNTIME}/{name}"


def pod_name(call: str, fault: str) -> str:
    """Name the pod that one call goes wrong for."""
    return f"{call.lower()}-{fault}"


CASES = [(call, fault) for call in (*STARTING, *ENDING) for fault in FAULTS]
NAMES = {pod_name(call, fault): f"registry.test/{pod_name(call, fault)}:1" for call, fault in CASES}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FaultyNode]:
    """One kubelet for all of these tests."""
    fake = FakeCri(IMAGE, pullable=tuple(NAMES.values()))  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    async with faulty_node(tmp_path_factory.mktemp("n"), fake) as made:
        yield made


def harm(node: FaultyNode, calls: tuple[str, ...]) -> None:
    """Let one of the calls go wrong once for each pod that is named after it."""
    for call, fault in CASES:
        if call in calls:
            about = node.about(pod_name(call, fault))
            node.proxy.inject(method(call), FAULTS[fault], times=1, when=about)
            if call == "RemoveContainer":
                # A container that was created and could not be started is removed, and made anew.
                node.proxy.inject(f"{RUNTIME}/StartContainer", Error(), times=1, when=about)


@pytest.mark.fault("F4")
async def test_an_answer_that_is_lost_late_or_asked_for_twice_starts_nothing_twice(node: FaultyNode) -> None:
    """Each call of a pod's start, each fault: one sandbox, one container, one start, and no loop."""
    harm(node, STARTING)
    await node.world.apply(
        *(manifest(name, image, imagePullPolicy="Always") for name, image in NAMES.items())
    )
    await node.until_ready(*NAMES)

    pods = await node.world.pods()
    made = {name: Counter(kind for kind, _, _ in node.created(name)) for name in NAMES}
    held = Counter(c.labels[POD_LABEL] for c, _ in node.fake.containers.values())
    # A container that the kubelet knows to be created and not started is removed, and made anew.
    again = ("removecontainer", "createcontainer-lost", "createcontainer-late")
    expected = {
        name: {"sandbox": 1, "container": 2 if name.startswith(again) else 1, "start": 1} for name in NAMES
    }
    assert made == expected
    assert held == dict.fromkeys(NAMES, 1)
    assert {name: pods[name].containers[0].restart_count for name in NAMES} == dict.fromkeys(NAMES, 0)
    assert node.fake.violations == []
    assert sum(node.proxy.injected[method(call)] for call in STARTING) == 3 * (len(STARTING) + 1)
    # Once for each pod, once more for each fault: nobody tries in a loop.
    assert node.proxy.calls[method("CreateContainer")] <= len(NAMES) + 9
    assert node.proxy.calls[method("RunPodSandbox")] <= len(NAMES) + 6


@pytest.mark.fault("F4")
async def test_a_pods_end_survives_lost_late_and_doubled_answers(node: FaultyNode) -> None:
    """Each call of a pod's end, each fault: all is gone, and the audit is empty."""
    node.proxy.clear()
    harm(node, ENDING)
    await asyncio.gather(*(node.world.delete(name) for name in NAMES))
    await node.until(lambda pods: not pods)

    assert sum(node.proxy.injected[method(call)] for call in ENDING) == 3 * len(ENDING)
    assert not node.fake.sandboxes
    assert not node.fake.containers
    assert not (await node.world.audit()).findings


async def settle(node: FaultyNode) -> None:
    """Have three pods, of which one's container and one's sandbox have been replaced."""
    node.proxy.clear()
    names = ("plain", "crashed", "moved")
    missing = [name for name in names if name not in await node.world.pods()]
    if missing:
        await node.world.apply(*(manifest(name, IMAGE) for name in missing))
    await node.until_ready(*names)
    if "crashed" in missing:
        pods = await node.world.pods()
        node.fake.crash(pods["crashed"].uid, "app", 3)
        box = next(b for b in node.fake.sandboxes.values() if b.metadata.name == "moved")
        await node.fake.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=box.id), None)
        await node.until(
            lambda pods: all(pods[n].ready and pods[n].containers[0].restart_count == 1 for n in names[1:])
        )


def _empty_sandboxes(answer: cri.ListPodSandboxResponse) -> None:
    answer.ClearField("items")


def _empty_containers(answer: cri.ListContainersResponse) -> None:
    answer.ClearField("containers")


def _halve_sandboxes(answer: cri.ListPodSandboxResponse) -> None:
    del answer.items[::2]


def _halve_containers(answer: cri.ListContainersResponse) -> None:
    del answer.containers[::2]


EMPTY_SANDBOXES = (LISTS[0], edit(cri.ListPodSandboxResponse, _empty_sandboxes))
EMPTY_CONTAINERS = (LISTS[1], edit(cri.ListContainersResponse, _empty_containers))
LIES: list[Any] = [
    pytest.param([EMPTY_SANDBOXES, EMPTY_CONTAINERS], id="nothing-at-all"),
    pytest.param([EMPTY_SANDBOXES], id="no-sandboxes"),
    pytest.param([EMPTY_CONTAINERS], id="no-containers"),
    pytest.param(
        [
            (LISTS[0], edit(cri.ListPodSandboxResponse, _halve_sandboxes)),
            (LISTS[1], edit(cri.ListContainersResponse, _halve_containers)),
        ],
        id="half-of-them",
    ),
    pytest.param([(name, Error(Code.INTERNAL, "BROKEN")) for name in STATUSES], id="an-error-on-each-id"),
    pytest.param([(name, Error(Code.UNAVAILABLE, "AWAY")) for name in LISTS], id="no-list-at-all"),
]


@pytest.mark.fault("F10")
@pytest.mark.parametrize("lie", LIES)
async def test_a_runtime_that_leaves_things_out_gets_nothing_deleted_or_restarted(
    node: FaultyNode, lie: list[tuple[str, Fault]]
) -> None:
    """In doubt nothing is done; once the lists are whole again, all is as it was."""
    await settle(node)
    before = await node.world.pods()
    history, containers = list(node.fake.history), dict(node.fake.containers)
    for name, fault in lie:
        node.proxy.inject(name, fault)
    node.proxy.injected.clear()

    async with asyncio.timeout(60):
        # Each pod is looked at a few times, with whatever the runtime says then.
        while any(node.proxy.injected[name] < 12 for name, _ in lie[:1]):
            node.fake.stir()
            await asyncio.sleep(0.1)
    node.proxy.clear()
    node.fake.stir()
    await node.until_ready(*before)

    after = await node.world.pods()
    assert history == node.fake.history
    assert containers == node.fake.containers
    assert node.fake.violations == []
    for name, pod in before.items():
        assert [c.restart_count for c in after[name].containers] == [c.restart_count for c in pod.containers]
        assert [c.container_id for c in after[name].containers] == [c.container_id for c in pod.containers]


@pytest.mark.fault("F9")
async def test_pods_whose_runtime_calls_hang_keep_no_other_pod_waiting(node: FaultyNode) -> None:
    """More pods than start at a time wait for their images, and others start and go meanwhile."""
    node.proxy.clear()
    stuck = [f"stuck{number:02d}" for number in range(14)]
    for name in stuck:
        node.proxy.inject(f"{IMAGES}/ImageStatus", Hang(), when=node.about(f"registry.test/{name}:1"))
    await node.world.apply(*(manifest(name, f"registry.test/{name}:1") for name in stuck))
    await node.until(lambda pods: all(name in pods for name in stuck))
    await until(lambda: node.proxy.injected[f"{IMAGES}/ImageStatus"] >= len(stuck), 30)
    await node.world.apply(manifest("healthy", IMAGE))
    # A hanging call ends after 30 s: this must not be what the healthy pod waited for.
    await node.until_ready("healthy", seconds=20)
    pods = await node.world.pods()
    await node.world.delete("healthy")
    await node.until(lambda pods: "healthy" not in pods)

    assert not any(pods[name].ready for name in stuck)
    node.proxy.clear()


@pytest.mark.fault("F9")
async def test_a_slow_runtime_fails_no_probe_and_bounds_what_waits(tmp_path: Path) -> None:
    """Every call takes a third of a probe's time; forty probed pods start, and none is called unhealthy."""
    names = [f"probed{number:02d}" for number in range(40)]
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 1}
    fake = FakeCri(IMAGE)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    async with faulty_node(tmp_path, fake) as slow:
        await slow.world.apply(
            *(manifest(n, IMAGE, livenessProbe=probe, readinessProbe=probe) for n in names)
        )
        await slow.until_ready(*names)
        slow.proxy.inject("*", Delay(1.0), when=lambda request: True)
        probed = slow.proxy.calls[f"{RUNTIME}/ExecSync"]
        async with asyncio.timeout(60):
            while slow.proxy.calls[f"{RUNTIME}/ExecSync"] < probed + 3 * 2 * len(names):
                fake.stir()
                await asyncio.sleep(0.1)
        use = (await slow.world.audit()).process
        pods = await slow.world.pods()
        unhealthy = [e.message for e in await slow.events() if e.reason == "Unhealthy"]

    assert unhealthy == []
    assert {pod.containers[0].restart_count for pod in pods.values()} == {0}
    # For each pod a worker that asks for two things at once, and two probes, each with its call under way;
    # and what a kubelet has anyway.
    assert use.task_count < 9 * len(names) + 80
    assert use.open_file_count < 80
