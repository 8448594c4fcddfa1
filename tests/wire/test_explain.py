"""Why a pod is not Ready, asked over the wire and told by the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from cli.errors import Exit
from services.common.errors import Code, RemoteError
from services.common.grpcclient import call
from services.kubelet.core.model import ContainerId, PodUid
from services.kubelet.core.pull_secrets import Credential
from tests.fakes.kernel import MemoryKernel
from tests.fakes.runtime import FakeRuntime
from tests.lab.command import tripod
from tests.wire.test_node import Node, a_pod, running

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Run a node."""
    async with running(tmp_path, FakeRuntime(present=["app:1"]), MemoryKernel()) as made:
        yield made


async def ask(node: Node, name: str = "a") -> pb.ExplainResponse:
    """Explain a pod of `default`."""
    stub = pb_grpc.PodServiceStub(node.kubelet_channel)
    answer: pb.ExplainResponse = await call(
        stub.Explain, pb.ExplainRequest(pod_name=name), deadline_seconds=5
    )
    return answer


async def until_cause(node: Node, reason: str) -> pb.ExplainResponse:
    """Wait until the first cause is this one; return that answer, as the next may differ."""
    answers: list[pb.ExplainResponse] = []

    async def told() -> bool:
        answers.append(await ask(node))
        return bool(answers[-1].causes) and answers[-1].causes[0].reason == reason

    await node.until(told)
    return answers[-1]


async def test_a_ready_pod_tells_since_when_and_its_trace(node: Node) -> None:
    """And that its probe succeeds."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    answer = await ask(node)

    assert answer.verdict == pb.POD_VERDICT_READY
    assert answer.HasField("since_time")
    assert answer.trace_id == (await node.pods())["a"].trace_id
    assert [(c.container, c.reason) for c in answer.causes] == [("app", "Running")]


async def test_a_failing_probe_tells_what_it_said_and_when_it_runs_again(node: Node) -> None:
    """Counted against its threshold, with the event that shows it."""
    node.probes.unready.add("a")
    await node.apply(a_pod("a"))
    answer = await until_cause(node, "ReadinessFailing")

    cause = answer.causes[0]
    assert answer.verdict == pb.POD_VERDICT_NOT_READY
    assert "told so" in cause.message
    assert cause.scope == pb.CAUSE_SCOPE_CONTAINER
    assert [event.reason for event in cause.evidence] == ["Unhealthy"]


async def test_an_image_that_cannot_be_pulled_tells_when_the_next_try_is(node: Node) -> None:
    """With the registry's own words."""
    await node.apply(a_pod("a", image="nowhere:1"))
    answer = await until_cause(node, "ImagePullBackOff")

    assert "no such host" in answer.causes[0].message
    assert 0 < answer.causes[0].next_attempt_seconds <= 10


async def test_a_crash_loop_tells_exit_code_count_and_next_start(node: Node) -> None:
    """The first end is answered at once; the second one waits."""
    await node.apply(a_pod("a"))
    await node.until_ready("a")
    uid = PodUid((await node.pods())["a"].uid)
    node.runtime.end(uid, "app", 137)

    async def again() -> bool:
        return (await node.pods())["a"].containers[0].restart_count == 1

    await node.until(again)
    await node.until_ready("a")
    node.runtime.end(uid, "app", 137)
    answer = await until_cause(node, "CrashLoopBackOff")

    assert "exit code 137 (SIGKILL)" in answer.causes[0].message
    assert "it has ended 2 times" in answer.causes[0].message
    assert 0 < answer.causes[0].next_attempt_seconds <= 10


async def test_a_runtime_that_is_down_is_told_while_it_is_down(node: Node) -> None:
    """The explanation asks it nothing."""
    node.runtime.down = True
    await node.apply(a_pod("a"))
    answer = await until_cause(node, "RuntimeNotAnswering")

    assert answer.causes[0].scope == pb.CAUSE_SCOPE_NODE
    assert answer.causes[0].HasField("next_attempt_seconds")
    node.runtime.down = False
    await node.until_ready("a")
    assert [c.reason for c in (await ask(node)).causes] == ["Running"]


class SlowRuntime(FakeRuntime):
    """Takes its time for pulls and stops, until a test lets them go on."""

    def __init__(self) -> None:
        super().__init__(pullable=["slow:1"])
        self.pull, self.stop = asyncio.Event(), asyncio.Event()

    async def pull_image(self, image: str, credential: Credential | None = None) -> None:
        """Pull when told."""
        await self.pull.wait()
        await super().pull_image(image, credential)

    async def stop_container(self, container: ContainerId, grace_seconds: int) -> None:
        """Stop when told."""
        await self.stop.wait()
        await super().stop_container(container, grace_seconds)


async def test_what_takes_long_is_told_while_it_goes_on(tmp_path: Path) -> None:
    """A pull that is under way, and a container that does not end, with the grace that is left."""
    runtime = SlowRuntime()
    async with running(tmp_path, runtime, MemoryKernel()) as node:
        await node.apply(a_pod("a", image="slow:1", terminationGracePeriodSeconds=300))
        pulling = await until_cause(node, "Pulling")
        runtime.pull.set()
        await node.until_ready("a")
        await node.delete("a")
        stopping = await until_cause(node, "Stopping")
        runtime.stop.set()

        async def gone() -> bool:
            return not await node.pods()

        await node.until(gone)

    assert "slow:1 is being pulled" in pulling.causes[0].message
    assert pulling.causes[0].HasField("since_time")
    assert stopping.verdict == pb.POD_VERDICT_DELETING
    assert "waiting for container app to end; the grace is 300 s" in stopping.causes[0].message
    assert 200 < stopping.causes[0].next_attempt_seconds <= 300


async def test_an_unknown_pod_is_not_found_and_refused_manifests_are_named(node: Node) -> None:
    """It may be in one of them."""
    with pytest.raises(RemoteError) as without:
        await ask(node, "ghost")
    node.refused["/manifests/ghost.yaml"] = "spec.containers: missing"
    with pytest.raises(RemoteError) as named:
        await ask(node, "ghost")

    assert without.value.code is named.value.code is Code.NOT_FOUND
    assert "manifest" not in without.value.message
    assert "the manifest /manifests/ghost.yaml is refused: spec.containers: missing" in named.value.message


async def test_the_command_line_tells_it_in_sentences(node: Node, tmp_path: Path) -> None:
    """For people and for programs; `describe` has the first cause; an unknown pod is exit code 4."""
    await node.apply(a_pod("a", image="nowhere:1"))
    await until_cause(node, "ImagePullBackOff")

    text = await tripod("explain", "pod/a", run_directory=tmp_path)
    value = await tripod("explain", "a", "-o", "json", run_directory=tmp_path)
    described = await tripod("describe", "pod", "a", run_directory=tmp_path)
    unknown = await tripod("explain", "ghost", run_directory=tmp_path)

    codes = [ended.code for ended in (text, value, described, unknown)]
    assert codes == [0, 0, 0, Exit.NOT_FOUND]
    assert text.out.startswith("pod/a is not Ready, for ")
    assert "container app: ImagePullBackOff, for " in text.out
    assert "Next: the image is pulled again" in text.out
    assert "tripod trace pod/a" in text.out
    assert json.loads(value.out)["causes"][0]["reason"] == "ImagePullBackOff"
    assert "Why:           container app: ImagePullBackOff: pulling its image failed" in described.out
    assert "pod/ghost does not exist" in unknown.err
