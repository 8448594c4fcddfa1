"""What the kubelet relies on in a runtime: the same suite on the fake and on the real one."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.errors import Code, TripodError
from services.common.grpcclient import open_channel
from services.kubelet.adapters.cri_client import CriRuntime
from services.kubelet.core.model import ContainerId, Pod, SandboxId
from services.kubelet.core.observed import RuntimeState
from services.kubelet.core.resources import KernelResources
from services.kubelet.core.spec_hash import changed, spec_hash
from services.kubelet.cri.app import CriServer, cleanup
from services.kubelet.cri.config import CriConfig
from services.kubelet.ports import ContainerConfig, Runtime, SandboxConfig
from tests.builders import a_container, a_pod
from tests.fakes.cri_server import FakeCri, cri_server
from tests.fakes.runtime import FakeRuntime
from tests.waiting import until

pytestmark = pytest.mark.asyncio
IMAGE = "tripod-demo:1"
FOREVER = ("python3", "-c", "import os, signal; signal.signal(15, lambda *_: os._exit(143)); signal.pause()")


@pytest_asyncio.fixture(params=["fake", "cri-fake", pytest.param("docker", marks=pytest.mark.docker)])
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Give each runtime in turn."""
    if request.param == "fake":
        yield FakeRuntime(present=[IMAGE])
        return
    if request.param == "cri-fake":
        async with served(tmp_path) as made:
            yield made
        return
    mark = uuid.uuid4().hex[:5]
    config = CriConfig(
        socket=tmp_path / "cri.sock",
        state_directory=tmp_path / "cri",
        node_name=f"tt-{mark}",
        bridge=f"tt{mark}",
        pod_cidr="10.201.99.0/24",
        chain_prefix=f"TT{mark.upper()}",
        veth_prefix=f"t{mark[:3]}",
    )
    server = CriServer(config)
    await server.start()
    channel = open_channel(f"unix://{config.socket}")
    async with asyncio.TaskGroup() as group:
        upkeep = group.create_task(server.run())
        try:
            yield CriRuntime(channel)
        finally:
            upkeep.cancel()
            await channel.close(None)
            await server.stop()
            await cleanup(config)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Runtime]:
    """Serve the fake over its socket for a block."""
    fake = FakeCri(IMAGE)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = cri_server(fake, folder / "fake.sock")
    await server.start()
    channel = open_channel(f"unix://{folder}/fake.sock")
    try:
        yield CriRuntime(channel)
    finally:
        await channel.close(None)
        await server.stop(0.1)


def pod() -> Pod:
    """A pod of one container that runs until it is told to stop."""
    return a_pod(a_container(image=IMAGE, command=FOREVER), uid=f"uid-{uuid.uuid4()}")


async def sandbox(runtime: Runtime, wanted: Pod, attempt: int = 0) -> SandboxId:
    """Make a sandbox."""
    return await runtime.create_sandbox(SandboxConfig(wanted, attempt, hostname="web", log_directory=""))


async def container(runtime: Runtime, wanted: Pod, box: SandboxId, attempt: int = 0) -> ContainerId:
    """Create a container."""
    spec = wanted.spec.containers[0]
    config = ContainerConfig(
        pod=wanted,
        sandbox=SandboxConfig(wanted, 0, hostname="web", log_directory=""),
        container=spec,
        attempt=attempt,
        command=spec.command,
        args=(),
        environment={"A": "1"},
        mounts=(),
        resources=KernelResources(100, 0, 0, 0),
        log_path="",
    )
    return await runtime.create_container(box, config)


async def catches_term(made: ContainerId) -> None:
    """Wait until a real container's program has its handler; before, the kernel lets no TERM reach it."""
    command = [shutil.which("docker") or "false", "inspect", "--format", "{{.State.Pid}}", str(made)]
    found = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return  # It lives in a fake.
    status = Path(f"/proc/{found.stdout.strip()}/status")

    def caught() -> bool:
        mask = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
        return bool(int(mask.split()[1], 16) & 1 << (signal.SIGTERM - 1))

    await until(caught, 30)


async def test_a_pod_that_was_never_made_is_empty(runtime: Runtime) -> None:
    """And no error."""
    seen = await runtime.observe(pod().uid)

    assert (seen.sandboxes, seen.containers) == ((), ())


async def test_a_container_goes_from_created_to_running_to_ended(runtime: Runtime) -> None:
    """Each state is seen, with its attempt; stopping twice is no error."""
    wanted = pod()
    box = await sandbox(runtime, wanted)
    made = await container(runtime, wanted, box, attempt=3)
    states = [(await runtime.observe(wanted.uid)).latest("app")]
    await runtime.start_container(made)
    states.append((await runtime.observe(wanted.uid)).latest("app"))
    await catches_term(made)
    await runtime.stop_container(made, 10)
    await runtime.stop_container(made, 10)
    states.append((await runtime.observe(wanted.uid)).latest("app"))

    assert [s and s.state for s in states] == [
        RuntimeState.CREATED,
        RuntimeState.RUNNING,
        RuntimeState.EXITED,
    ]
    assert [s and (s.id, s.attempt, s.sandbox_id) for s in states] == [(made, 3, box)] * 3
    assert states[2] is not None
    assert states[2].exit_code == 143
    assert states[2].finished_at is not None


async def test_one_container_and_one_sandbox_can_be_looked_at_alone(runtime: Runtime) -> None:
    """The same is told as in a look at the whole pod, but for the sandbox of a container."""
    wanted = pod()
    box = await sandbox(runtime, wanted)
    made = await container(runtime, wanted, box)
    await runtime.start_container(made)
    whole = await runtime.observe(wanted.uid)
    alone = await runtime.container(made)

    assert (await runtime.sandbox(box),) == whole.sandboxes
    assert (replace(alone, sandbox_id=box),) == whole.containers


async def test_what_does_not_exist_cannot_be_looked_at(runtime: Runtime) -> None:
    """An absent one is an error, never an empty answer."""
    for look in (runtime.sandbox(SandboxId("f" * 64)), runtime.container(ContainerId("f" * 64))):
        with pytest.raises(TripodError) as caught:
            await look

        assert caught.value.code is Code.NOT_FOUND


async def test_a_sandbox_has_an_address_until_it_is_stopped(runtime: Runtime) -> None:
    """Stopping ends what runs in it; removing takes all; both may be repeated."""
    wanted = pod()
    box = await sandbox(runtime, wanted)
    made = await container(runtime, wanted, box)
    await runtime.start_container(made)
    ready = (await runtime.observe(wanted.uid)).sandbox()
    for _ in range(2):
        await runtime.stop_sandbox(box)
    stopped = await runtime.observe(wanted.uid)
    for _ in range(2):
        await runtime.remove_sandbox(box)
    gone = await runtime.observe(wanted.uid)

    assert ready is not None
    assert (ready.ready, len(ready.addresses)) == (True, 1)
    assert [(b.ready, b.addresses) for b in stopped.sandboxes] == [(False, ())]
    assert [c.state for c in stopped.containers] == [RuntimeState.EXITED]
    assert (gone.sandboxes, gone.containers) == ((), ())


async def test_the_same_sandbox_asked_for_again_is_the_same(runtime: Runtime) -> None:
    """An answer may be lost on its way; the second one names what the first one made."""
    wanted = pod()
    first = await sandbox(runtime, wanted)
    second = await sandbox(runtime, wanted)

    assert second == first
    assert len((await runtime.observe(wanted.uid)).sandboxes) == 1


async def test_a_container_remembers_which_spec_it_was_made_from(runtime: Runtime) -> None:
    """A pod's container with another image is told from it."""
    wanted = pod()
    box = await sandbox(runtime, wanted)
    made = await container(runtime, wanted, box)

    seen = await runtime.container(made)
    assert seen.spec_hash == spec_hash(wanted.spec.containers[0])
    assert not changed(wanted.spec.containers[0], seen)
    assert changed(replace(wanted.spec.containers[0], image="other:1"), seen)


async def test_another_sandbox_of_the_same_attempt_is_refused(runtime: Runtime) -> None:
    """Two workers cannot both make the pod."""
    wanted = pod()
    await sandbox(runtime, wanted)
    with pytest.raises(TripodError) as caught:
        await runtime.create_sandbox(SandboxConfig(wanted, 0, hostname="other", log_directory=""))

    assert caught.value.code is Code.ALREADY_EXISTS


async def test_the_same_container_asked_for_again_is_the_same(runtime: Runtime) -> None:
    """Also once it runs."""
    wanted = pod()
    box = await sandbox(runtime, wanted)
    first = await container(runtime, wanted, box)
    second = await container(runtime, wanted, box)
    await runtime.start_container(first)
    third = await container(runtime, wanted, box)

    assert (second, third) == (first, first)
    assert len((await runtime.observe(wanted.uid)).containers) == 1


async def test_a_pods_manifest_comes_back(runtime: Runtime) -> None:
    """A lost store takes running pods back by it."""
    wanted = pod()
    config = SandboxConfig(wanted, 0, hostname="web", log_directory="", manifest='{"a": 1}')
    await runtime.create_sandbox(config)

    assert (await runtime.manifests())[wanted.uid] == '{"a": 1}'


async def test_a_container_needs_a_ready_sandbox(runtime: Runtime) -> None:
    """One in a stopped sandbox would have no network."""
    wanted = pod()
    box = await sandbox(runtime, wanted)
    await runtime.stop_sandbox(box)
    with pytest.raises(TripodError) as caught:
        await container(runtime, wanted, box)

    assert caught.value.reason == "SANDBOX_NOT_READY"


async def test_what_is_not_there_cannot_be_started_and_can_be_removed(runtime: Runtime) -> None:
    """Starting asks for something, removing for nothing."""
    absent = ContainerId("f" * 64)
    with pytest.raises(TripodError) as caught:
        await runtime.start_container(absent)
    await runtime.remove_container(absent)
    await runtime.stop_container(absent, 1)

    assert caught.value.code is Code.NOT_FOUND


async def test_pods_are_listed_by_uid(runtime: Runtime) -> None:
    """With their names: an orphan must be told from others."""
    wanted = pod()
    box = await sandbox(runtime, wanted)
    listed = await runtime.list_pods()

    assert (listed[wanted.uid].name, listed[wanted.uid].namespace) == ("web", "default")
    assert [b.id for b in listed[wanted.uid].sandboxes] == [box]


async def test_a_runtime_tells_how_it_fares_and_what_it_can(runtime: Runtime) -> None:
    """Its handlers come in an order that stays."""
    said = await runtime.status()

    assert {c.type for c in said.conditions if c.holds} >= {"RuntimeReady", "NetworkReady"}
    names = [handler.name for handler in said.features.handlers]
    assert names == sorted(names)


async def test_images_are_found_and_a_pull_that_fails_is_explained(runtime: Runtime) -> None:
    """The kubelet decides by the first, and shows the second."""
    listed = {image.id: image for image in await runtime.images()}
    present = [await runtime.image_present(IMAGE), await runtime.image_present("registry.invalid/x:1")]
    with pytest.raises(TripodError) as caught:
        await runtime.pull_image("registry.invalid/x:1")

    assert present == [True, False]
    (found,) = (image for image in listed.values() if any(IMAGE in name for name in image.names))
    assert found.size_bytes > 0
    assert "registry.invalid/x:1" in caught.value.message


async def test_nothing_is_remembered_of_pods_that_were_removed(tmp_path: Path) -> None:
    """The last look at a pod is before its end, and none comes after it."""
    async with served(tmp_path) as runtime:
        wanted = pod()
        first = await sandbox(runtime, wanted)
        await container(runtime, wanted, first)
        await runtime.stop_sandbox(first)
        second = await sandbox(runtime, wanted, attempt=1)
        await runtime.observe(wanted.uid)
        assert isinstance(runtime, CriRuntime)

        await runtime.stop_sandbox(second)
        await runtime.remove_sandbox(second)
        assert runtime._known[wanted.uid][0] == {first}
        await runtime.remove_sandbox(first)

        assert runtime._known == {}
        assert not (await runtime.observe(wanted.uid)).sandboxes
