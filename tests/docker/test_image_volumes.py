"""Volumes that are images, on an engine that has none of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import Code, RemoteError
from tests.docker.test_cri_server import Server
from tests.lab.dockerd import TEST_IMAGE, PrivateEngine, private_engine
from tests.lab.registry import Registry, registry

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
MANY = 40
CANARY = "canary-77aa-secret"


class Box:
    """A server on an engine of its own, with a sandbox, and images from a registry."""

    def __init__(self, server: Server, engine: PrivateEngine, served: Registry) -> None:
        self.server = server
        self.engine = engine
        self.registry = served
        self.sandbox_id = ""
        self._number = 0

    async def pull(self, name: str) -> str:
        """Pull an image; returns its id."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name))
        return str((await self.server.ask(self.server.images.PullImage, request)).image_ref)

    async def container(self, *mounts: pb.Mount, start: bool = True) -> str:
        """Create and start a container with mounts."""
        self._number += 1
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=f"app{self._number}"),
            image=pb.ImageSpec(image=TEST_IMAGE),
            command=["sleep", "1000000"],
            mounts=mounts,
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=self.sandbox_id, config=config)
        made = (await self.server.ask(self.server.runtime.CreateContainer, request)).container_id
        if start:
            wanted = pb.StartContainerRequest(container_id=made)
            await self.server.ask(self.server.runtime.StartContainer, wanted)
        return str(made)

    async def run(self, container: str, *words: str) -> tuple[int, str]:
        """Run a command in a container."""
        request = pb.ExecSyncRequest(container_id=container, cmd=words, timeout=30)
        answer = await self.server.ask(self.server.runtime.ExecSync, request)
        return answer.exit_code, answer.stdout.decode() + answer.stderr.decode()

    async def remove(self, container: str) -> None:
        """Remove a container."""
        runtime = self.server.runtime
        await self.server.ask(runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=container))

    async def remove_image(self, name: str) -> None:
        """Remove an image."""
        request = pb.RemoveImageRequest(image=pb.ImageSpec(image=name))
        await self.server.ask(self.server.images.RemoveImage, request)

    def volumes(self) -> list[str]:
        """Name the engine's volumes."""
        return self.engine.output("volume", "ls", "-q").split()

    async def no_volumes(self) -> None:
        """Wait until there are none."""

        async def gone() -> bool:
            return not await asyncio.to_thread(self.volumes)

        await self.server.until(gone)

    def mounts(self) -> list[str]:
        """Name the mounts of volumes that the host has."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        below = str(self.engine.folder / "data/volumes")
        return [line.split()[4] for line in lines if line.split()[4].startswith(below)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Box]:
    """Run the engine, the registry and the server."""
    with private_engine() as engine, registry() as served:
        server = Server(tmp_path_factory.mktemp("volumes"), engine.host)
        await server.start()
        try:
            made = Box(server, engine, served)
            made.sandbox_id = await server.sandbox()
            yield made
        finally:
            await server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def box(shared: Box) -> AsyncIterator[Box]:
    """See that no volume and no mount is left once the containers are removed."""
    yield shared
    listed = await shared.server.ask(shared.server.runtime.ListContainers, pb.ListContainersRequest())
    for container in listed.containers:
        await shared.remove(container.id)
    assert shared.volumes() == []
    assert shared.mounts() == []


def _volume(image: str, sub_path: str = "", **more: Any) -> pb.Mount:
    values: dict[str, Any] = {"container_path": "/v", "readonly": True, "image_sub_path": sub_path}
    return pb.Mount(image=pb.ImageSpec(image=image, user_specified_image="mine:1"), **{**values, **more})


def _layers() -> list[Mapping[str, bytes | str | None]]:
    program = shutil.which("busybox")
    assert program is not None, "`private_engine` has it"
    return [
        {
            "bin": None,
            "bin/busybox": Path(program).read_bytes(),
            "conf": None,
            "conf/old": b"one",
            "conf/gone": b"x",
            "replaced": None,
            "replaced/lower": b"x",
            "secret-link": "/etc/passwd",
        },
        {
            "conf": None,
            "conf/new": b"two",
            "conf/.wh.gone": b"",
            "replaced": None,
            "replaced/.wh..wh..opq": b"",
            "replaced/upper": b"y",
            "link": "conf",
        },
    ]


async def test_an_image_is_mounted_read_only(box: Box) -> None:
    """Its layers as one, programs runnable; the status tells the image and no path of the host."""
    box.registry.add("data", "1", layers=_layers())
    image = await box.pull(box.registry.name("data", "1"))
    container = await box.container(_volume(image))
    listing = await box.run(container, "ls", "/v", "/v/conf", "/v/replaced")
    written = await box.run(container, "sh", "-c", "echo x > /v/conf/new")
    program = await box.run(container, "/v/bin/busybox", "echo", "runs")
    mount = next(m for m in (await box.server.status(container)).mounts if m.container_path == "/v")

    names = ["bin", "conf", "link", "replaced", "secret-link"]
    assert listing == (
        0,
        "\n".join(["/v:", *names, "", "/v/conf:", "new", "old", "", "/v/replaced:", "upper\n"]),
    )
    assert written[0] != 0
    assert "Read-only" in written[1]
    assert program == (0, "runs\n")
    assert (mount.readonly, mount.host_path) == (True, "")
    assert (mount.image.image, mount.image.image_ref) == (image, image)
    assert mount.image.user_specified_image == "mine:1"
    assert len(box.volumes()) == 1


@pytest.mark.parametrize(
    ("sub_path", "command", "output"),
    [
        pytest.param("conf", ("ls", "/v"), "new\nold\n", id="a-folder-of-two-layers"),
        pytest.param("replaced", ("ls", "/v"), "upper\n", id="a-folder-that-was-replaced"),
        pytest.param("link", ("ls", "/v"), "new\nold\n", id="a-link"),
    ],
)
async def test_a_part_of_an_image_is_mounted(
    box: Box, sub_path: str, command: tuple[str, ...], output: str
) -> None:
    """Read-only, too."""
    box.registry.add("data", "1", layers=_layers())
    image = await box.pull(box.registry.name("data", "1"))
    container = await box.container(_volume(image, sub_path))

    assert await box.run(container, *command) == (0, output)
    assert (await box.run(container, "sh", "-c", "echo x > /v || echo x > /v/new"))[0] != 0


@pytest.mark.parametrize(
    ("mount", "code"),
    [
        pytest.param({"sub_path": "none"}, Code.FAILED_PRECONDITION, id="absent-sub-path"),
        pytest.param({"sub_path": "conf/gone"}, Code.FAILED_PRECONDITION, id="removed-sub-path"),
        pytest.param({"sub_path": "conf/old"}, Code.FAILED_PRECONDITION, id="a-file"),
        pytest.param({"sub_path": "secret-link"}, Code.FAILED_PRECONDITION, id="a-link-to-the-hosts-file"),
        pytest.param({"sub_path": "../x"}, Code.INVALID_ARGUMENT, id="upward"),
        pytest.param({"readonly": False}, Code.INVALID_ARGUMENT, id="writable"),
        pytest.param({"host_path": "/tmp"}, Code.INVALID_ARGUMENT, id="with-a-host-path"),
        pytest.param({"image": "absent:1"}, Code.NOT_FOUND, id="absent-image"),
    ],
)
async def test_what_cannot_be_mounted_is_refused(box: Box, mount: dict[str, Any], code: Code) -> None:
    """Before a container is made."""
    box.registry.add("data", "1", layers=_layers())
    image = await box.pull(box.registry.name("data", "1"))
    with pytest.raises(RemoteError) as refused:
        await box.container(_volume(**{"image": image, **mount}))

    assert refused.value.code == code


async def test_one_layer_is_enough_and_many_are_not_too_many(box: Box) -> None:
    """The options have room for short names of layers."""
    box.registry.add("one", "1", layers=[{"only": b"1"}])
    box.registry.add("many", "1", layers=[{f"f{number}": b"1"} for number in range(MANY)])
    one, many = [await box.pull(box.registry.name(name, "1")) for name in ("one", "many")]
    container = await box.container(_volume(one, container_path="/one"), _volume(many))

    assert await box.run(container, "ls", "/one") == (0, "only\n")
    assert len((await box.run(container, "ls", "/v"))[1].split()) == MANY


async def test_an_image_that_is_mounted_stays(box: Box) -> None:
    """Until the container is gone."""
    box.registry.add("kept", "1", layers=[{"a": os.urandom(9)}, {"b": os.urandom(9)}])
    name = box.registry.name("kept", "1")
    image = await box.pull(name)
    container = await box.container(_volume(image))
    with pytest.raises(RemoteError) as refused:
        await box.remove_image(name)
    await box.remove(container)
    await box.remove_image(name)

    assert (refused.value.code, refused.value.reason) == (Code.FAILED_PRECONDITION, "IMAGE_IN_USE")
    assert "app" in refused.value.metadata["containers"]


async def test_a_killed_server_leaves_no_mount(box: Box) -> None:
    """None of its own was there: the container runs on with its volume, and the status tells it as before."""
    box.registry.add("data", "1", layers=_layers())
    image = await box.pull(box.registry.name("data", "1"))
    container = await box.container(_volume(image))
    await box.server.kill()
    await box.server.start()

    assert await box.run(container, "cat", "/v/conf/new") == (0, "two")
    mount = next(m for m in (await box.server.status(container)).mounts if m.container_path == "/v")
    assert mount.image.image_ref == image


async def test_the_pause_image_is_pinned_and_made_anew(box: Box) -> None:
    """It stays while sandboxes use it; when somebody removes it by force, the next sandbox gets another."""
    name = box.server.config.pause_image
    spec = pb.ImageSpec(image=name)
    status = await box.server.ask(box.server.images.ImageStatus, pb.ImageStatusRequest(image=spec))
    with pytest.raises(RemoteError) as refused:
        await box.remove_image(name)
    await asyncio.to_thread(box.engine.docker, "rmi", "-f", name)
    second = await box.server.sandbox("second")
    runtime = box.server.runtime
    await box.server.ask(runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=second))
    await box.server.ask(runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=second))

    assert status.image.pinned
    assert refused.value.reason == "IMAGE_IN_USE"
    assert second


@pytest.mark.fault("F6")
async def test_a_killed_engine_leaves_no_mount(box: Box) -> None:
    """The container runs on with its volume, which goes once the engine lets it go."""
    box.registry.add("data", "1", layers=_layers())
    container = await box.container(_volume(await box.pull(box.registry.name("data", "1"))))
    await asyncio.to_thread(box.engine.kill)
    await asyncio.to_thread(box.engine.start)
    await box.server.until(box.server._answers)

    assert await box.run(container, "cat", "/v/conf/new") == (0, "two")
    await box.remove(container)
    assert box.mounts() == []
    await asyncio.to_thread(box.engine.kill)
    await asyncio.to_thread(box.engine.start)
    await box.no_volumes()


async def test_credentials_never_reach_the_servers_log(box: Box) -> None:
    """Nor its answer, although the registry repeats them."""
    box.registry.add("private", "1", layers=_layers())
    box.registry.faults.basic = ("ann", "another")
    request = pb.PullImageRequest(
        image=pb.ImageSpec(image=box.registry.name("private", "1")),
        auth=pb.AuthConfig(username="ann", password=CANARY),
    )
    try:
        with pytest.raises(RemoteError) as refused:
            await box.server.ask(box.server.images.PullImage, request)
    finally:
        box.registry.faults.basic = None
    log = (box.server.folder / "server.log").read_text()

    assert refused.value.code == Code.UNAUTHENTICATED
    assert "Started gRPC server" in log
    assert CANARY not in log
    assert CANARY not in f"{refused.value.message} {refused.value.metadata}"


async def test_a_volume_whose_container_others_removed_goes_too(box: Box) -> None:
    """The server looks after what carries its name."""
    box.registry.add("data", "1", layers=_layers())
    image = await box.pull(box.registry.name("data", "1"))
    container = await box.container(_volume(image))
    await asyncio.to_thread(box.engine.docker, "rm", "-f", container)
    assert len(box.volumes()) == 1
    await box.no_volumes()
