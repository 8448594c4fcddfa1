"""kubectl works on pods of ours as on any node's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from tests.cluster.objects import container, deployment, marks, pod, server
from tests.lab.cluster import Cluster, until
from tests.lab.dockerd import TEST_IMAGE
from tests.lab.terminal import terminal
from tools.cluster.component import PEERS

pytestmark = marks
KUBECTL = PEERS / "kubectl"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def app(made: Cluster) -> AsyncIterator[Cluster]:
    """Run a pod that does nothing, one that counts, one that repeats its input, and a web server."""
    counts = "n=0; while true; do echo line $n; n=$((n+1)); sleep 0.2; done"
    web = pod("web")
    web["spec"]["containers"] = [server()]
    repeats = pod("cat", "cat", stdin=True)
    await made.apply(pod("idle", node="a"), pod("counts", "sh", "-c", counts, node="b"), repeats, web)
    await made.ready("idle", "counts", "cat", "web")
    yield made
    await made.delete("pod/idle", "pod/counts", "pod/cat", "pod/web")


async def test_get_shows_nodes_and_pods(app: Cluster) -> None:
    """With what the kubelet tells of itself and of them."""
    nodes = (await app.kubectl("get", "nodes", "-o", "wide", "--no-headers")).out.splitlines()
    pods = (await app.kubectl("get", "pods", "counts", "idle", "-o", "wide", "--no-headers")).out.splitlines()

    assert [line.split()[:2] for line in nodes] == [["a", "Ready"], ["b", "Ready"]]
    assert [node.address in line for node, line in zip(app.nodes.values(), nodes, strict=True)] == [
        True,
        True,
    ]
    assert [line.split()[:4] for line in pods] == [
        ["counts", "1/1", "Running", "0"],
        ["idle", "1/1", "Running", "0"],
    ]


async def test_describe_tells_what_happened(app: Cluster) -> None:
    """Events of scheduler and kubelet, in their order."""
    told = (await app.kubectl("describe", "pod", "idle")).out
    reasons = re.findall(r"^  Normal\s+(\w+)", told, re.MULTILINE)

    assert reasons[0] == "Scheduled"
    assert [reason for reason in reasons if reason in ("Created", "Started")] == ["Created", "Started"]
    assert "Node:             a/" in told
    assert "kubelet" in told


async def test_describe_node_tells_what_it_has(app: Cluster) -> None:
    """Conditions, capacity, addresses, system information."""
    told = (await app.kubectl("describe", "node", "a")).out

    for word in ("MemoryPressure", "DiskPressure", "PIDPressure", "KubeletReady", "InternalIP", "docker://"):
        assert word in told
    assert "idle" in told


async def test_logs_are_followed(app: Cluster) -> None:
    """Lines come as they are written; `--tail` and `--timestamps` are honoured."""
    tail = await app.kubectl("logs", "counts", "--tail=2", "--timestamps")
    async with terminal(KUBECTL, "logs", "-f", "counts", environment=app.plane.environment()) as follows:
        await follows.reads("line 0")
        last = max(int(number) for number in re.findall(r"line (\d+)", follows.seen))
        await follows.reads(f"line {last + 3}")

    assert len(tail.out.splitlines()) == 2
    assert re.match(r"^\d{4}-\d\d-\d\dT\S+Z line \d+$", tail.out.splitlines()[0])


async def test_exec_has_a_terminal_and_an_exit_code(app: Cluster) -> None:
    """Of the size of one's own; what the command returns is what kubectl returns."""
    words = ("exec", "-it", "idle", "--", "sh")
    async with terminal(KUBECTL, *words, environment=app.plane.environment(), size=(33, 101)) as shell:
        await shell.reads("#")
        shell.type("stty size; exit 7\n")
        await shell.reads("33 101")
        code = await shell.ended()

    plain = await app.kubectl(
        "exec", "-i", "idle", "--", "sh", "-c", "cat; echo bad >&2; exit 3", data=b"in", check=False
    )
    assert code == 7
    assert (plain.code, plain.out) == (3, "in")
    assert plain.err.startswith("bad\n")


async def test_attach_reaches_the_running_program(app: Cluster) -> None:
    """What is typed comes back."""
    words = ("attach", "-i", "cat")
    async with terminal(KUBECTL, *words, environment=app.plane.environment()) as attached:
        await attached.reads("try pressing enter")
        attached.type("hello there\n")
        # By the terminal, and by the program.
        await attached.reads("hello there\r\nhello there\r\n")


async def test_cp_copies_both_ways(app: Cluster, tmp_path: Path) -> None:
    """Byte by byte."""
    content = bytes(range(256)) * 4096
    (tmp_path / "out").write_bytes(content)

    await app.kubectl("cp", str(tmp_path / "out"), "idle:/tmp/there")
    await app.kubectl("cp", "idle:/tmp/there", str(tmp_path / "back"))

    assert (tmp_path / "back").read_bytes() == content


async def test_port_forward_reaches_the_server(app: Cluster) -> None:
    """By a port of this host."""
    words = ("port-forward", "pod/web", ":8080")
    async with terminal(KUBECTL, *words, environment=app.plane.environment()) as forwards:
        await forwards.reads("-> 8080")
        found = re.search(r"127\.0\.0\.1:(\d+)", forwards.seen)
        assert found is not None
        async with aiohttp.ClientSession() as http:
            for _ in range(3):
                async with http.get(f"http://127.0.0.1:{found[1]}/") as answer:
                    assert await answer.text() == "web 1\n"


async def test_debug_adds_a_container_to_a_running_pod(app: Cluster) -> None:
    """An ephemeral container, on the terminal, that sees the processes of the one it looks at."""
    words = ("debug", "idle", "-it", f"--image={TEST_IMAGE}", "--image-pull-policy=Never", "--target=app")
    async with terminal(KUBECTL, *words, "--", "sh", environment=app.plane.environment()) as shell:
        await shell.reads("#", 60)
        shell.type("cat /proc/1/cmdline | tr '\\0' ' '; exit\n")
        await shell.reads("sleep 1000000")
        await shell.ended()

    found = await app.pod("idle")
    assert [each["image"] for each in found["spec"]["ephemeralContainers"]] == [TEST_IMAGE]
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_drain_moves_pods_to_the_other_node(made: Cluster) -> None:
    """Evicted pods end as they want to; the node takes none until it is uncordoned."""
    await made.apply(deployment("moves", {"containers": [container()]}))
    await made.kubectl("rollout", "status", "deployment/moves", "--timeout=60s", seconds=70)

    words = ("drain", "b", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s")
    await made.kubectl(*words, seconds=100)
    await made.kubectl("rollout", "status", "deployment/moves", "--timeout=60s", seconds=70)
    places = {each["spec"]["nodeName"] for each in await made.pods("app=moves")}
    left = await made.nodes["b"].run("true")
    await made.kubectl("uncordon", "b")

    assert left == ""
    assert places == {"a"}
    await made.delete("deployment/moves")

    async def gone() -> bool:
        return not await made.pods("app=moves")

    await until(gone, "its pods are gone")


async def test_a_forced_delete_ends_the_containers(made: Cluster) -> None:
    """The object goes at once, and the node cleans up after it."""
    await made.apply(pod("forced", node="a"))
    await made.ready("forced")
    engine = made.nodes["a"].engine
    words = ("ps", "-q", "--filter", "label=io.kubernetes.pod.name=forced")

    await made.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")

    async def ended() -> bool:
        return await asyncio.to_thread(engine.output, *words) == ""

    await until(ended, "no container runs")
