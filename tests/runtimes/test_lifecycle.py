"""How containers begin and end is the same on every runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pb

from tests.lab.node import BareNode, pod
from tests.runtimes.test_pods import run

pytestmark = [
    pytest.mark.docker,
    pytest.mark.netns,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
# Ends on TERM, and says so; what it waits in is ended by the signal, too.
POLITE = "trap 'echo {name} ends >> /host/said; exit 0' TERM; echo {name} runs >> /host/said; {rest}"
FOREVER = "while :; do sleep 0.1; done"


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _empty(made: BareNode) -> AsyncIterator[None]:
    said(made).unlink(missing_ok=True)
    yield
    await made.delete_all()


def said(made: BareNode) -> Path:
    """Return the file that containers of a test write to."""
    return made.folder / "said"


def lines(made: BareNode) -> list[str]:
    """Return what containers have said, in order."""
    return said(made).read_text().splitlines() if said(made).exists() else []


async def hears(made: BareNode, *wanted: str) -> None:
    """Wait until containers have said this, in this order."""

    async def holds() -> bool:
        return [line for line in lines(made) if line in wanted] == list(wanted)

    await made.until(holds, f"{wanted} are said: {lines(made)}")


def a_container(name: str, *command: str, **values: Any) -> dict[str, Any]:
    """Write a container that can say things on the host."""
    (made,) = pod("x", *command)["spec"]["containers"]
    return {**made, "name": name, "volumeMounts": [{"name": "host", "mountPath": "/host"}], **values}


def shell(name: str, words: str, **values: Any) -> dict[str, Any]:
    """Write a container that runs a script."""
    return a_container(name, "sh", "-c", words, **values)


def polite(name: str, rest: str = FOREVER, **values: Any) -> dict[str, Any]:
    """Write a container that says when it begins and when it is told to end."""
    return shell(name, POLITE.format(name=name, rest=rest), **values)


def staged(made: BareNode, *containers: dict[str, Any], grace: int = 20, **spec: Any) -> dict[str, Any]:
    """Write the pod `staged`."""
    volumes = [{"name": "host", "hostPath": {"path": str(made.folder)}}]
    return pod("staged", grace_seconds=grace, containers=list(containers), volumes=volumes, **spec)


async def events(made: BareNode) -> dict[str, str]:
    """Return the latest message of each reason."""
    return {event.reason: event.message for event in await made.events("staged")}


async def status(made: BareNode) -> pb.Pod:
    """Return the pod."""
    return (await made.pods())["staged"]


async def test_a_pod_begins_and_ends_in_its_order(made: BareNode) -> None:
    """Init containers, a sidecar, the main one; at the end the sidecar goes last."""
    await made.apply(
        staged(
            made,
            polite("app"),
            initContainers=[
                shell("one", "echo one >> /host/said"),
                polite("side", restartPolicy="Always"),
                shell("two", "echo two >> /host/said"),
            ],
        )
    )
    found = await made.ready("staged")
    await hears(made, "one", "side runs", "two", "app runs")
    await made.delete("staged")
    await made.gone("staged")

    assert lines(made)[4:] == ["app ends", "side ends"]
    assert [(c.ready, c.state.exit_code) for c in found.init_containers] == [(True, 0), (True, 0), (True, 0)]
    assert [c.restart_count for c in found.init_containers] == [0, 0, 0]


async def test_an_init_container_is_tried_until_it_succeeds(made: BareNode) -> None:
    """The main container waits."""
    counts = "echo try >> /host/said; test $(cat /host/said | tr -cd y | head -c 2 | tr y x) = xx"
    await made.apply(staged(made, a_container("app"), grace=1, initContainers=[shell("one", counts)]))
    found = await made.ready("staged")

    assert lines(made) == ["try", "try"]
    assert found.init_containers[0].restart_count == 1


async def test_an_init_container_that_fails_for_good_fails_the_pod(made: BareNode) -> None:
    """Nothing of it runs on."""
    sidecar = a_container("side", restartPolicy="Always")
    await made.apply(
        staged(
            made,
            a_container("app"),
            grace=1,
            restartPolicy="Never",
            initContainers=[sidecar, shell("one", "exit 7")],
        )
    )
    found = await made.phase("staged", pb.POD_PHASE_FAILED)

    assert found.init_containers[1].state.exit_code == 7
    assert found.init_containers[0].state.phase == pb.CONTAINER_PHASE_TERMINATED
    assert found.containers[0].state.phase == pb.CONTAINER_PHASE_WAITING


async def test_a_sidecar_starts_again_and_keeps_no_pod_from_being_done(made: BareNode) -> None:
    """It ends after the main container."""
    sidecar = polite("side", "while test ! -e /host/ill; do sleep 0.1; done; rm /host/ill; exit 3")
    await made.apply(
        staged(
            made,
            shell("app", "while test ! -e /host/done; do sleep 0.1; done; echo app done >> /host/said"),
            restartPolicy="Never",
            initContainers=[{**sidecar, "restartPolicy": "Always"}],
        )
    )
    await made.ready("staged")
    (made.folder / "ill").touch()

    async def back() -> bool:
        found = await status(made)
        return found.ready and found.init_containers[0].restart_count == 1

    await made.until(back, "the sidecar is back")
    await hears(made, "side runs", "side runs")
    (made.folder / "done").touch()
    found = await made.phase("staged", pb.POD_PHASE_SUCCEEDED)
    (made.folder / "done").unlink()

    assert lines(made)[2:] == ["app done", "side ends"]
    assert found.init_containers[0].state.exit_code == 0


async def test_hooks_run_after_the_start_and_before_the_stop(made: BareNode) -> None:
    """The next container starts when a hook has ended; the stop waits for one within the grace."""
    hooks = {
        "postStart": {"exec": {"command": ["sh", "-c", "sleep 1; echo started >> /host/said"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stopping >> /host/said; sleep 1"]}},
    }
    await made.apply(staged(made, polite("app", lifecycle=hooks), polite("other")))
    await made.ready("staged")
    await hears(made, "app runs", "started", "other runs")
    await made.delete("staged")
    await made.gone("staged")

    assert sorted(lines(made)[3:]) == ["app ends", "other ends", "stopping"]
    assert lines(made).index("stopping") < lines(made).index("app ends")


async def test_a_request_is_a_hook(made: BareNode) -> None:
    """Sent from the node to the pod, before it is told to stop."""
    serve = "mkdir -p /www/cgi-bin; printf '%s\\n' '#!/bin/sh' 'echo asked >> /host/said' 'echo; echo ok'"
    serve += " > /www/cgi-bin/bye; chmod +x /www/cgi-bin/bye; httpd -f -p 8080 -h /www"
    hook = {"preStop": {"httpGet": {"path": "/cgi-bin/bye", "port": 8080}}}
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    await made.apply(staged(made, shell("app", serve, lifecycle=hook, readinessProbe=probe), grace=2))
    await made.ready("staged")
    await made.delete("staged")
    await made.gone("staged")

    assert lines(made) == ["asked"]


async def test_a_hook_that_fails_ends_its_container(made: BareNode) -> None:
    """With an event, and it is started again."""
    await made.apply(
        staged(made, a_container("app", lifecycle={"postStart": {"exec": {"command": ["false"]}}}), grace=1)
    )
    await made.waits("staged", "CrashLoopBackOff")
    told = await events(made)

    assert told["FailedPostStartHook"] == "postStart hook failed: its command ended with exit code 1"
    assert "its postStart hook failed" in told["Killing"]


async def test_a_hook_that_was_cut_short_runs_again(made: BareNode) -> None:
    """A killed kubelet loses none, and the container stays as it is."""
    hook = {
        "exec": {
            "command": ["sh", "-c", "echo hook >> /host/said; while test ! -e /host/go; do sleep 0.1; done"]
        }
    }
    await made.apply(staged(made, a_container("app", lifecycle={"postStart": hook}), grace=1))
    await hears(made, "hook")
    before = (await status(made)).containers[0]
    await made.service.kill()
    await made.start()
    await hears(made, "hook", "hook")
    (made.folder / "go").touch()
    after = (await made.ready("staged")).containers[0]
    await made.service.kill()
    await made.start()
    last = (await made.ready("staged")).containers[0]
    (made.folder / "go").unlink()

    assert not before.started
    assert after.started
    assert {c.container_id for c in (before, after, last)} == {before.container_id}
    assert lines(made) == ["hook", "hook"]


async def test_a_stop_signal_is_the_one_that_is_asked_for(
    made: BareNode, request: pytest.FixtureRequest
) -> None:
    """Old runtimes know no such wish, and send TERM."""
    if request.node.callspec.params["made"] == "containerd":
        pytest.skip("containerd 1.6 is older than the field")
    traps = "trap 'echo usr1 >> /host/said; exit 0' USR1; trap 'echo term >> /host/said; exit 0' TERM"
    script = f"{traps}; echo up >> /host/said; {FOREVER}"
    await made.apply(staged(made, shell("app", script, lifecycle={"stopSignal": "SIGUSR1"})))
    await hears(made, "up")
    await made.delete("staged")
    await made.gone("staged")

    assert lines(made) == ["up", "usr1"]


async def test_a_probe_may_shorten_the_grace(made: BareNode) -> None:
    """A container that does not listen is killed after it, not after the pod's."""
    probe = {
        "exec": {"command": ["sh", "-c", "! test -e /tmp/ill"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
        "terminationGracePeriodSeconds": 1,
    }
    # The first attempt is deaf, the second is not.
    ears = "test -e /host/said && trap 'exit 0' TERM || trap '' TERM"
    deaf = shell("app", f"{ears}; mkdir -p /tmp; echo up >> /host/said; {FOREVER}", livenessProbe=probe)
    await made.apply(staged(made, deaf, grace=3000))
    await hears(made, "up")
    await made.ready("staged")
    await run(made, "staged", "sh", "-c", "echo > /tmp/ill")
    found = await made.ready("staged", restarts=1)

    assert found.containers[0].last_termination_state.exit_code == 137


async def test_a_pod_whose_time_is_up_fails(made: BareNode) -> None:
    """Nothing of it runs on."""
    await made.apply(staged(made, polite("app"), activeDeadlineSeconds=3))
    await hears(made, "app runs")
    found = await made.phase("staged", pb.POD_PHASE_FAILED)

    assert found.reason == "DeadlineExceeded"
    assert lines(made) == ["app runs", "app ends"]


@pytest.mark.parametrize(
    ("script", "policy", "expected"),
    [
        ("printf 'out of cheese' > /dev/termination-log; exit 1", "File", "out of cheese"),
        ("echo logged; exit 1", "FallbackToLogsOnError", "logged\n"),
        ("echo logged; exit 1", "File", ""),
        ("printf '\\377' > /dev/termination-log; exit 1", "File", "\ufffd"),
        ("rm /dev/termination-log; echo x; exit 1", "File", ""),
    ],
    ids=["file", "log", "no-log", "no-text", "not-to-be-removed"],
)
async def test_last_words_are_told(made: BareNode, script: str, policy: str, expected: str) -> None:
    """From the file, or from the log where the policy says so."""
    await made.apply(
        staged(made, shell("app", script, terminationMessagePolicy=policy), restartPolicy="Never")
    )

    async def told() -> bool:
        found = await status(made)
        return found.phase == pb.POD_PHASE_FAILED and found.containers[0].state.message == expected

    await made.until(told, f"{expected!r} is told")


async def test_another_image_restarts_a_container_where_it_is(made: BareNode) -> None:
    """Whatever the restart policy; the other container and the address stay."""
    first = staged(made, a_container("app"), a_container("other"), grace=1, restartPolicy="Never")
    await made.apply(first)
    before = await made.ready("staged")
    first["spec"]["containers"][0]["image"] = "docker.io/library/tripod-test:1"
    await made.apply(first)

    async def changed() -> bool:
        found = await status(made)
        return found.ready and found.containers[0].restart_count == 1

    await made.until(changed, "the container is another one")
    after = await status(made)

    assert after.pod_ips == before.pod_ips
    assert after.containers[1].container_id == before.containers[1].container_id
    assert (await events(made))["Killing"] == "Container app definition changed, will be restarted"


async def test_an_ephemeral_container_sees_its_target(made: BareNode) -> None:
    """It is added to a pod that runs, and touches nothing of it."""
    wanted = staged(made, a_container("app", "sleep", "123456"), grace=1)
    await made.apply(wanted)
    before = await made.ready("staged")
    looks = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' > /host/said; sleep 100000"
    wanted["spec"]["ephemeralContainers"] = [
        {**shell("debug", looks), "targetContainerName": "app", "stdin": True, "tty": True}
    ]
    await made.apply(wanted)

    async def seen() -> bool:
        found = await status(made)
        runs = [c.state.phase == pb.CONTAINER_PHASE_RUNNING for c in found.ephemeral_containers]
        return runs == [True] and "sleep 123456" in " ".join(lines(made))

    await made.until(seen, "the target's process is seen")
    after = await status(made)

    assert after.ready
    assert after.containers[0].container_id == before.containers[0].container_id


async def test_init_containers_run_again_in_a_new_sandbox(
    made: BareNode, request: pytest.FixtureRequest
) -> None:
    """Each of them, in order, before the main ones."""
    if request.node.callspec.params["made"] == "containerd":
        pytest.skip("the engine's own program takes the sandbox away here")
    await made.apply(
        staged(made, polite("app"), grace=1, initContainers=[shell("one", "echo one >> /host/said")])
    )
    await made.ready("staged")
    box = await made.sandbox_id("staged")  # type: ignore[attr-defined]  # of the node with an engine
    await made.docker("kill", box)  # type: ignore[attr-defined]  # as above

    async def again() -> bool:
        found = await status(made)
        return found.ready and found.init_containers[0].restart_count == 1

    await made.until(again, "the pod is ready again")

    assert [line for line in lines(made) if line != "app ends"] == ["one", "app runs", "one", "app runs"]
