"""Somebody else works at the engine: removes, stops, pauses and renames what is ours, or imitates it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

from tests.lab.dockerd import TEST_IMAGE
from tests.lab.node import BRIDGE, NODE_NAME, Node, node, pod

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
TERMINATED = pod_pb.CONTAINER_PHASE_TERMINATED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home() -> AsyncIterator[Node]:
    """Run a node with a bystander."""
    async with node() as made:
        await made.apply(pod("bystander"))
        await made.ready("bystander")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def victim(home: Node) -> AsyncIterator[Node]:
    """Run a pod beside the bystander, who must not notice what happens; nothing may be left."""
    bystander = (await home.snapshot())["bystander/app"]
    await home.apply(pod("victim"))
    await home.ready("victim")
    yield home
    others = [name for name in await home.pods() if name != "bystander"]
    await home.delete(*others)
    await home.gone(*others)
    await home.clean()
    assert await home.snapshot() == {"bystander/app": bystander}


@pytest.mark.fault("F11")
async def test_a_container_that_was_removed_is_made_again_and_counted(victim: Node) -> None:
    """The count goes up, twice in a row, and never back; the status says what became of the first."""
    counts: list[int] = []
    for attempt in (1, 2):
        await victim.docker("rm", "-f", await victim.container_id("victim"))

        async def made_again(wanted: int = attempt) -> bool:
            found = (await victim.pods())["victim"]
            counts.append(found.containers[0].restart_count)
            return found.ready and counts[-1] == wanted

        await victim.until(made_again, f"restart {attempt}")
    found = (await victim.pods())["victim"].containers[0]

    assert counts == sorted(counts)
    last = found.last_termination_state
    # Killed first, then removed: which of the two was seen, is chance.
    assert (last.phase, last.exit_code) == (TERMINATED, 137)
    assert last.reason in ("Error", "ContainerStatusUnknown")


@pytest.mark.fault("F11")
async def test_a_container_that_was_stopped_starts_again_and_is_counted(victim: Node) -> None:
    """With the exit code that the engine tells."""
    await victim.docker("stop", "--time", "0", await victim.container_id("victim"))

    found = await victim.ready("victim", restarts=1)
    assert found.containers[0].last_termination_state.exit_code == 137


@pytest.mark.fault("F11")
@pytest.mark.parametrize(
    ("command", "phase"), [("true", pod_pb.POD_PHASE_SUCCEEDED), ("false", pod_pb.POD_PHASE_FAILED)]
)
async def test_what_has_ended_for_good_stays_ended_without_its_container(
    victim: Node, command: str, phase: pod_pb.PodPhase.ValueType
) -> None:
    """`docker container prune` makes no finished pod run again, nor loses how it ended."""
    await victim.apply(pod("job", command, policy="Never"))
    before = (await victim.phase("job", phase)).containers[0]

    await victim.docker("rm", before.container_id)
    await victim.docker("stop", "--time", "0", await victim.container_id("victim"))
    await victim.ready("victim", restarts=1)

    after = await victim.phase("job", phase)
    assert after.containers[0] == before
    assert await victim.docker("ps", "-aq", "--filter", "label=io.kubernetes.pod.name=job") != ""


@pytest.mark.fault("F11")
async def test_a_removed_container_that_may_not_restart_has_failed(victim: Node) -> None:
    """Nobody knows how it ended, so it did not end well."""
    await victim.apply(pod("once", policy="Never"))
    await victim.ready("once")

    await victim.docker("rm", "-f", await victim.container_id("once"))

    found = await victim.phase("once", pod_pb.POD_PHASE_FAILED)
    assert found.containers[0].state.exit_code == 137
    assert found.containers[0].restart_count == 0


@pytest.mark.fault("F11")
async def test_a_paused_container_is_told_and_left_alone(victim: Node) -> None:
    """It does not run, is not started a second time, and goes on when it is let go."""
    before = (await victim.snapshot())["victim/app"]

    await victim.docker("pause", before.container_id)
    paused = await victim.waits("victim", "Paused")
    await victim.service.kill()
    again = await victim.waits("victim", "Paused")
    await victim.docker("unpause", before.container_id)

    assert not paused.ready
    assert not again.ready
    assert again.phase == pod_pb.POD_PHASE_RUNNING
    await victim.ready("victim")
    assert (await victim.snapshot())["victim/app"] == before


@pytest.mark.fault("F11")
async def test_a_paused_pod_can_be_deleted(victim: Node) -> None:
    """The container is let go, so that it can end."""
    await victim.docker("pause", await victim.container_id("victim"))
    await victim.waits("victim", "Paused")

    await victim.delete("victim")

    await victim.gone("victim")


@pytest.mark.fault("F11")
async def test_a_renamed_container_stays_ours(victim: Node) -> None:
    """Its id counts. It goes on, and is removed with its pod."""
    before = (await victim.snapshot())["victim/app"]
    await victim.docker("rename", before.container_id, "somebody-elses")
    await victim.service.kill()

    await victim.ready("victim")

    assert (await victim.snapshot())["victim/app"] == before


@pytest.mark.fault("F12")
async def test_a_removed_sandbox_takes_its_pod_along_into_a_new_one(victim: Node) -> None:
    """Everything of the pod is made anew: the old container is gone, the old address is free."""
    before = (await victim.snapshot())["victim/app"]
    old = await victim.sandbox_id("victim")

    await victim.docker("rm", "-f", old)

    await victim.ready("victim", restarts=1)
    after = (await victim.snapshot())["victim/app"]
    state = await victim.inspect(before.container_id, "{{.State.Running}}")
    assert await victim.sandbox_id("victim") not in ("", old)
    assert state in ("", "false")
    assert len(after.addresses) == 1
    await victim.clean()


@pytest.mark.fault("F12")
async def test_a_pod_whose_sandbox_was_removed_can_be_deleted(victim: Node) -> None:
    """What outlived its sandbox goes as well, even if nobody wants the pod any more."""
    container = await victim.container_id("victim")
    await victim.service.kill()
    await victim.docker("rm", "-f", await victim.sandbox_id("victim"))
    await victim.delete("victim")

    await victim.gone("victim")

    assert await victim.inspect(container, "{{.Id}}") == ""


@pytest.mark.fault("F13")
async def test_a_deleted_bridge_is_made_again_with_every_pod_on_it(victim: Node) -> None:
    """Containers, addresses and links are those of before, and the node reaches its pods."""
    before = await victim.snapshot()

    await victim.ip("link", "del", BRIDGE)

    await victim.until(lambda: _wired(victim, 2), "the pods are on the bridge again")
    assert await victim.snapshot() == before
    for seen in before.values():
        await _reaches(victim, seen.addresses[0])


@pytest.mark.fault("F13")
async def test_a_deleted_link_is_made_again(victim: Node) -> None:
    """The pod keeps its container and its address."""
    before = await victim.snapshot()
    names = [line.split()[1].split("@")[0] for line in (await _ports(victim))]

    for name in names:
        await victim.ip("link", "del", name)

    await victim.until(lambda: _wired(victim, 2), "the pods are on the bridge again")
    assert await victim.snapshot() == before
    for seen in before.values():
        await _reaches(victim, seen.addresses[0])


async def _ports(made: Node) -> list[str]:
    return (await made.ip("-o", "link", "show", "master", BRIDGE)).splitlines()


async def _wired(made: Node, count: int) -> bool:
    try:
        return len([line for line in await _ports(made) if "LOWER_UP" in line]) == count
    except subprocess.CalledProcessError:  # There is no bridge yet.
        return False


async def _reaches(made: Node, address: str) -> None:
    """See that a pod answers: with a refusal, which only its kernel can send."""
    program = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 9), timeout=5)\n"
        "except ConnectionRefusedError: print('refused')\n"
    )
    words = ["nsenter", f"--net=/run/netns/{made.netns}", "--", "python3", "-c", program, address]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out == b"refused\n", address


@pytest.mark.fault("F14")
async def test_a_foreign_container_under_our_name_is_left_alone(victim: Node) -> None:
    """Ours goes by a name beside it."""
    await victim.apply(pod("late", image="late:1"))
    uid = (await victim.waits("late", "ErrImageNeverPull")).uid
    name = f"k8s_app_late_default_{uid}_0"
    foreign = await victim.docker("create", "--name", name, TEST_IMAGE, "true")
    created = await victim.inspect(foreign, "{{.Created}} {{.State.Status}}")
    await victim.docker("tag", TEST_IMAGE, "late:1")

    await victim.ready("late")

    assert await victim.inspect(await victim.container_id("late"), "{{.Name}}") == f"/{name}_2"
    assert await victim.inspect(foreign, "{{.Created}} {{.State.Status}}") == created
    assert "Left a foreign container alone" in victim.service.log.read_text()
    await victim.docker("rm", foreign)


@pytest.mark.fault("F15")
@pytest.mark.fault("S25")
async def test_an_image_that_imitates_our_labels_is_nobody_of_ours(victim: Node) -> None:
    """Started by hand with another pod's labels, it is neither adopted nor deleted, and is told."""
    before = await victim.snapshot()
    container = before["victim/app"].container_id
    labels = (await victim.docker("inspect", "--format", "{{json .Config.Labels}}", container)).encode()
    values = json.loads(labels)
    changes = [f"LABEL {name}={json.dumps(value)}" for name, value in values.items()]
    image = await asyncio.to_thread(victim.engine.add_image, "imitation:1", *changes)
    foreign = await victim.docker("run", "-d", "--name", "imitation", image, "sleep", "1000000")
    assert await victim.inspect(foreign, '{{index .Config.Labels "io.tripod.node"}}') == NODE_NAME

    async def told() -> bool:
        found = (await victim.audit()).findings
        return [(f.id, f.problem) for f in found] == [("/imitation", node_pb.AUDIT_PROBLEM_FOREIGN)]

    await victim.until(told, "the audit tells of the imitation")
    await victim.docker("stop", "--time", "0", container)
    await victim.ready("victim", restarts=1)
    await victim.delete("victim")
    await victim.gone("victim")

    assert await victim.inspect(foreign, "{{.State.Status}}") == "running"
    await victim.docker("rm", "-f", foreign)
