"""What a pod's user sees is the same on every runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from services.common.grpcclient import stream
from tests.lab.node import BareNode, pod

pytestmark = [
    pytest.mark.docker,
    pytest.mark.netns,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _empty(made: BareNode) -> AsyncIterator[None]:
    yield
    await made.delete_all()


async def run(made: BareNode, name: str, *command: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a command in a pod's container; returns its exit code and both outputs."""

    async def requests() -> AsyncIterator[pb.ExecRequest]:
        start = pb.ExecStart(
            namespace="default", pod_name=name, container="app", command=command, stdin=bool(data)
        )
        yield pb.ExecRequest(start=start)
        if data:
            yield pb.ExecRequest(stdin=data)
            yield pb.ExecRequest(stdin_end=pb.StdinEnd())

    code, outputs = -1, {"stdout": b"", "stderr": b""}
    async with stream(pb_grpc.PodServiceStub(made.channel).Exec, requests(), deadline_seconds=30) as answers:
        async for answer in answers:
            kind = answer.WhichOneof("output")
            if kind == "exit_code":
                code = answer.exit_code
            elif kind is not None:
                outputs[kind] += getattr(answer, kind)
    return code, outputs["stdout"], outputs["stderr"]


async def lines(made: BareNode, name: str, count: int, *, previous: bool = False) -> list[bytes]:
    """Wait for so many lines of a container's log."""
    found: list[bytes] = []

    async def holds() -> bool:
        found[:] = await made.logs(name, previous=previous)
        return len(found) >= count

    await made.until(holds, f"{name} has {count} lines: {found}")
    return found


def reasons(events: Sequence[pb.Event]) -> set[str]:
    """Name the reasons of events."""
    return {event.reason for event in events}


async def test_a_pod_starts_and_goes(made: BareNode) -> None:
    """Ready with an address, told by events, and gone without a trace."""
    await made.apply(pod("web"))
    found = await made.ready("web")
    events = reasons(await made.events("web"))
    await made.delete("web")
    await made.gone("web")
    await made.clean()

    assert found.phase == pb.POD_PHASE_RUNNING
    assert len(found.pod_ips) == 1
    assert found.containers[0].container_id
    assert events >= {"Scheduled", "Pulled", "Created", "Started"} or events >= {
        "Pulled",
        "Created",
        "Started",
    }


async def test_output_comes_as_it_was_written(made: BareNode) -> None:
    """Both streams, an empty line, no last line feed."""
    await made.apply(pod("talks", "sh", "-c", "echo one; echo; echo two >&2; printf three; sleep 100000"))
    await made.ready("talks")

    assert sorted(await lines(made, "talks", 3))[:3] == sorted([b"one", b"", b"two"])


async def test_a_container_that_fails_is_started_again_and_its_last_log_is_kept(made: BareNode) -> None:
    """The exit code shows, the count grows, the back-off is told."""
    await made.apply(pod("fails", "sh", "-c", "echo life; exit 7"))
    found: list[pb.Pod] = []

    async def again() -> bool:
        found[:] = [(await made.pods())["fails"]]
        return found[0].containers[0].restart_count >= 1

    await made.until(again, "it is started again")
    assert found[0].containers[0].last_termination_state.exit_code == 7
    assert await lines(made, "fails", 1, previous=True) == [b"life"]
    await made.waits("fails", "CrashLoopBackOff")
    assert "BackOff" in reasons(await made.events("fails"))


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [
        ("Never", 0, pb.POD_PHASE_SUCCEEDED),
        ("Never", 3, pb.POD_PHASE_FAILED),
        ("OnFailure", 0, pb.POD_PHASE_SUCCEEDED),
    ],
)
async def test_a_pod_that_is_done_has_its_phase(
    made: BareNode, policy: str, code: int, phase: pb.PodPhase.ValueType
) -> None:
    """And stays as it ended, with the address that it had, also for the next kubelet."""
    stopped = ("PodReadyToStartContainers", pb.CONDITION_STATUS_FALSE)

    async def unwired() -> bool:
        told = (await made.pods())["done"].conditions
        return any((c.type, c.status) == stopped for c in told)

    await made.apply(pod("done", "sh", "-c", f"exit {code}", policy=policy))
    found = await made.phase("done", phase)

    assert found.containers[0].state.exit_code == code
    assert found.containers[0].restart_count == 0
    await made.until(unwired, "its sandbox has stopped")
    after = (await made.pods())["done"]
    await made.service.kill()
    await made.start()
    again = await made.phase("done", phase)
    assert len(after.pod_ips) == 1
    assert (after.phase, again.pod_ips) == (phase, after.pod_ips)


async def test_what_a_manifest_says_is_what_a_container_finds(made: BareNode) -> None:
    """Environment, references, working directory, host name, hosts file, DNS, a volume of two containers."""
    shared = {"name": "shared", "mountPath": "/shared"}
    wanted = pod(
        "finds",
        container={
            "env": [{"name": "A", "value": "one"}, {"name": "B", "value": "$(A)-two"}],
            "workingDir": "/tmp",
            "volumeMounts": [shared],
        },
        volumes=[{"name": "shared", "emptyDir": {}}],
    )
    other = {
        **wanted["spec"]["containers"][0],
        "name": "other",
        "command": ["sh", "-c", "echo hi > /shared/x; sleep 10000"],
    }
    wanted["spec"]["containers"].append(other)
    await made.apply(wanted)
    address = (await made.ready("finds")).pod_ips[0]

    async def written() -> bool:
        return (await run(made, "finds", "cat", "/shared/x"))[1] == b"hi\n"

    await made.until(written, "the other container's file shows")
    code, said, _ = await run(made, "finds", "sh", "-c", "echo $A $B; pwd; cat /etc/hostname /etc/hosts")

    assert code == 0
    text = said.decode().splitlines()
    assert text[:3] == ["one one-two", "/tmp", "finds"]
    assert any(line.split() == [address, "finds"] for line in text[3:])


async def test_commands_run_with_input_outputs_and_their_code(made: BareNode) -> None:
    """As `kubectl exec -i` does, 300 kB through and back."""
    await made.apply(pod("shell"))
    await made.ready("shell")
    data = b"0123456789" * 30_000

    assert await run(made, "shell", "cat", data=data) == (0, data, b"")
    assert await run(made, "shell", "sh", "-c", "echo no >&2; exit 9") == (9, b"", b"no\n")


async def test_probes_decide_over_readiness_and_life(made: BareNode) -> None:
    """HTTP and a command; a failing liveness probe restarts."""
    await made.apply(
        pod(
            "probed",
            *("httpd", "-f", "-p", "8080", "-h", "/etc"),
            container={
                "readinessProbe": {"httpGet": {"path": "/passwd", "port": 8080}, "periodSeconds": 1},
                "livenessProbe": {
                    "exec": {"command": ["sh", "-c", "! test -e /tmp/ill"]},
                    "periodSeconds": 1,
                    "failureThreshold": 1,
                },
            },
        )
    )
    first = await made.ready("probed")
    await run(made, "probed", "sh", "-c", "echo > /tmp/ill")
    second = await made.ready("probed", restarts=1)

    assert first.containers[0].container_id != second.containers[0].container_id
    assert {"Unhealthy", "Killing"} <= reasons(await made.events("probed"))


async def test_a_slow_start_is_waited_for_and_a_failed_one_is_told(made: BareNode) -> None:
    """No other probe runs before the startup probe has succeeded; too many failures restart."""
    up = {"exec": {"command": ["sh", "-c", "test -e /tmp/up"]}, "periodSeconds": 1}
    probes = {"startupProbe": {**up, "failureThreshold": 30}, "livenessProbe": {**up, "failureThreshold": 1}}
    slow = pod("slow", "sh", "-c", "sleep 4; echo > /tmp/up; sleep 100000", container=probes)
    never = pod("never", container={"startupProbe": {**up, "failureThreshold": 2}})
    await made.apply(slow, never)
    await made.ready("slow")
    killed: list[str] = []

    async def again() -> bool:
        killed[:] = [e.message for e in await made.events("never") if e.reason == "Killing"]
        return (await made.pods())["never"].containers[0].restart_count >= 1

    await made.until(again, "a container that does not start is started again")
    assert "its startup probe failed" in killed[0]
    assert not (await made.pods())["never"].ready


async def test_a_container_that_has_started_need_not_start_again_for_a_new_kubelet(made: BareNode) -> None:
    """Its startup probe fails by now; it stays as it is, and ready."""
    up = {"exec": {"command": ["sh", "-c", "test -e /tmp/up"]}, "periodSeconds": 1, "failureThreshold": 3}
    await made.apply(pod("begun", "sh", "-c", "echo > /tmp/up; sleep 100000", container={"startupProbe": up}))
    before = (await made.ready("begun")).containers[0]
    await run(made, "begun", "rm", "/tmp/up")
    await made.service.kill()
    await made.start()
    after = (await made.ready("begun")).containers[0]
    probed = [e.message for e in await made.events("begun") if e.reason == "Unhealthy"]

    assert (after.container_id, after.restart_count) == (before.container_id, 0)
    assert probed == []


async def test_limits_reach_the_kernel(made: BareNode) -> None:
    """A container that takes more memory than it may is killed, and says so."""
    grow = "x=0123456789; while :; do x=$x$x; done"
    limits = {"limits": {"memory": "24Mi", "cpu": "500m"}}
    await made.apply(pod("greedy", "sh", "-c", grow, policy="Never", container={"resources": limits}))
    found = await made.phase("greedy", pb.POD_PHASE_FAILED)

    assert found.containers[0].state.exit_code == 137
    assert found.containers[0].state.reason == "OOMKilled"


async def test_an_end_is_asked_for_before_it_is_forced(made: BareNode) -> None:
    """The signal is heard; who does not listen is killed once the grace is over."""
    polite = "trap 'echo bye > /shared/said; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    wanted = pod(
        "polite",
        *("sh", "-c", polite),
        grace_seconds=20,
        container={"volumeMounts": [{"name": "host", "mountPath": "/shared"}]},
        volumes=[{"name": "host", "hostPath": {"path": str(made.folder)}}],
    )
    await made.apply(wanted, pod("deaf", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"))
    for name in ("polite", "deaf"):
        await made.ready(name)
        await lines(made, name, 1)
    await made.delete("polite", "deaf")
    await made.gone("polite", "deaf")

    assert (made.folder / "said").read_text() == "bye\n"


async def test_a_kubelet_that_is_killed_disturbs_nobody(made: BareNode) -> None:
    """The same containers with the same start, and new work is done."""
    await made.apply(pod("stays"), pod("talker", "sh", "-c", "echo a; sleep 100000"))
    before = [(await made.ready(name)).containers[0] for name in ("stays", "talker")]
    await made.service.kill()
    await made.start()
    await made.condition("Ready", holds=True)
    after = [(await made.ready(name)).containers[0] for name in ("stays", "talker")]
    await made.apply(pod("late"))
    await made.ready("late")

    assert [(c.container_id, c.state.start_time) for c in after] == [
        (c.container_id, c.state.start_time) for c in before
    ]
    assert await lines(made, "talker", 1) == [b"a"]


async def test_an_image_that_is_not_there_is_told(made: BareNode) -> None:
    """With the reason of the policy."""
    await made.apply(pod("none", image="tripod-nowhere:1"))
    found = await made.waits("none", "ErrImageNeverPull")

    assert "imagePullPolicy" in found.containers[0].state.message


async def test_pods_reach_each_other(made: BareNode) -> None:
    """By address."""
    await made.apply(pod("server", "httpd", "-f", "-p", "8080", "-h", "/etc"), pod("client"))
    address = (await made.ready("server")).pod_ips[0]
    await made.ready("client")

    async def answered() -> bool:
        return (await run(made, "client", "wget", "-qO-", f"http://{address}:8080/passwd"))[0] == 0

    await made.until(answered, "the client reaches the server")


async def test_what_this_host_cannot_give_is_told(made: BareNode, request: pytest.FixtureRequest) -> None:
    """A Guaranteed pod wants a negative out-of-memory score, which needs CAP_SYS_RESOURCE."""
    if request.node.callspec.params["made"] == "containerd":
        pytest.skip("containerd clamps by its configuration and says nothing")
    resources = {"limits": {"memory": "32Mi", "cpu": "100m"}}
    await made.apply(pod("precious", container={"resources": resources}))
    await made.ready("precious")
    score = int((await run(made, "precious", "cat", "/proc/1/oom_score_adj"))[1])
    told = "PrivilegesRestricted" in reasons(await made.events("precious"))

    assert told is not _has_cap_sys_resource()
    assert score == (-997 if _has_cap_sys_resource() else 0)


def _has_cap_sys_resource() -> bool:
    """Whether this process's bounding set has capability 24."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapBnd:")[2].split()[0], 16) >> 24 & 1)
