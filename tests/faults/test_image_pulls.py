"""Registries that refuse, fail, lie, stall and break off: each has its word, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb

from services.common import telemetry
from services.common.clock import SystemClock
from services.common.errors import Code
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.image_service import ImageService
from services.kubelet.cri.imageusage import ImageUsage
from services.kubelet.cri.pulls import Puller
from services.kubelet.cri.register import Register
from services.kubelet.cri.sandboxes import Holdings
from tests.lab.dockerd import TEST_IMAGE, PrivateEngine, private_engine
from tests.lab.registry import Faults, Registry, registry

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
CANARY = "canary-3f9a-secret"
LIMIT_SECONDS = 60.0
PAUSE = "tripod-pause:1"


@dataclass
class Home:
    """An engine of its own, a registry, and the image service between them."""

    engine: PrivateEngine
    registry: Registry
    client: DockerClient
    service: ImageService
    puller: Puller
    group: asyncio.TaskGroup
    folder: Path
    _streams: EngineStreams

    async def pull(self, name: str, puller: Puller | None = None, **auth: str) -> str:
        """Pull; returns the image's id."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name))
        if auth:
            request.auth.CopyFrom(pb.AuthConfig(**auth))
        service = self.service if puller is None else self.made(puller)
        return str((await service.PullImage(request, None)).image_ref)

    async def refusal(self, name: str, puller: Puller | None = None, **auth: str) -> CriError:
        """Pull in vain."""
        with pytest.raises(CriError) as refused:
            await self.pull(name, puller, **auth)
        return refused.value

    async def status(self, name: str) -> pb.Image | None:
        """Return an image's status."""
        answer = await self.service.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=name)), None)
        image: pb.Image = answer.image
        return image if answer.HasField("image") else None

    async def listed(self) -> list[pb.Image]:
        """List all images but those that the engine has from the start."""
        answer = await self.service.ListImages(pb.ListImagesRequest(), None)
        return [image for image in answer.images if not any(TEST_IMAGE in tag for tag in image.repo_tags)]

    async def remove(self, name: str) -> None:
        """Remove an image."""
        await self.service.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), None)

    def impatient(self, seconds: float) -> Puller:
        """Make a puller that waits less long for progress."""
        made = Puller(self._streams, stall_seconds=seconds, limit_seconds=LIMIT_SECONDS)
        made.bind(self.group)
        return made

    def made(self, puller: Puller) -> ImageService:
        """Make the service."""
        clock = SystemClock()
        holdings = Holdings(self.client, "images", Register(self.folder, "images"))
        usage = ImageUsage(self.client, clock)
        return ImageService(
            client=self.client, holdings=holdings, puller=puller, usage=usage, clock=clock, pause_image=PAUSE
        )

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for a condition, with a limit."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not await asyncio.to_thread(holds):  # noqa: ASYNC110  # it lies in another process
                await asyncio.sleep(0.02)

    def leftovers(self) -> list[str]:
        """Name layers, and files of downloads, that the engine keeps."""
        data = self.engine.folder / "data"
        found = [*(data / "overlay2").iterdir(), *(data / "tmp").iterdir()]
        return sorted(place.name for place in found if place.name != "l")


@asynccontextmanager
async def _home(folder: Path) -> AsyncIterator[Home]:
    with private_engine(settings={"max-download-attempts": 1}) as engine, registry() as served:
        client, streams = DockerClient(engine.host), EngineStreams(engine.host, "1.41")
        try:
            async with asyncio.TaskGroup() as group:
                puller = Puller(streams, stall_seconds=LIMIT_SECONDS, limit_seconds=LIMIT_SECONDS)
                puller.bind(group)
                home = Home(engine, served, client, None, puller, group, folder, streams)  # type: ignore[arg-type]  # made next
                home.service = home.made(puller)
                yield home
        finally:
            await streams.close()
            client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """Run the engine and the registry."""
    async with _home(tmp_path_factory.mktemp("images")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def home(shared: Home) -> AsyncIterator[Home]:
    """See that a test leaves no image, no layer and no half of one."""
    before = await asyncio.to_thread(shared.leftovers)
    yield shared
    shared.registry.faults = Faults()
    for image in await shared.listed():
        await shared.remove(image.id)
    await shared.until(lambda: shared.leftovers() == before)
    assert await shared.listed() == []
    shared.registry.requests.clear()


def _content(mark: str) -> list[dict[str, bytes | str | None]]:
    """Make two layers that no other test has; they do not shrink much."""
    return [{"base": mark.encode() + os.urandom(200_000)}, {"top": mark.encode() + os.urandom(50_000)}]


async def test_an_image_has_one_id_and_its_full_names(home: Home) -> None:
    """By tag, by digest, by id and by a part of it; tag and digest together are the digest's."""
    digest = home.registry.add("app", "1", "2", "latest", layers=_content("a"), config={"User": "1000:1"})
    names = [home.registry.name("app", tag) for tag in ("1", "2", "")]
    ids = [await home.pull(name) for name in names]
    ids.append(await home.pull(f"{names[2]}:1@{digest}"))
    image = await home.status(names[0])
    assert image is not None
    known = [ids[0], ids[0][7:], ids[0][7:20], *names, f"{names[2]}@{digest}", f"{names[2]}:1@{digest}"]
    statuses = [await home.status(name) for name in known]
    filtered = [
        await home.service.ListImages(
            pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image=name))), None
        )
        for name in (names[0], home.registry.name("none"))
    ]
    streamed = [part async for part in home.service.StreamImages(pb.StreamImagesRequest(), None)]

    assert len(set(ids)) == 1
    assert (image.id, image.uid.value, image.username) == (ids[0], 1000, "")
    assert sorted(image.repo_tags) == sorted([names[0], names[1], f"{names[2]}:latest"])
    assert list(image.repo_digests) == [f"{names[2]}@{digest}"]
    assert image.size > 250_000
    assert all(status == image for status in statuses)
    assert await home.listed() == [image]
    assert [list(answer.images) for answer in filtered] == [[image], []]
    assert image in [found for part in streamed for found in part.images]


async def test_an_image_by_digest_has_no_tag(home: Home) -> None:
    """And is told by its digest."""
    digest = home.registry.add("bare", "1", layers=_content("b"))
    name = f"{home.registry.name('bare')}@{digest}"
    await home.pull(name)
    image = await home.status(name)

    assert image is not None
    assert (list(image.repo_tags), list(image.repo_digests)) == ([], [name])


async def test_a_verbose_status_tells_the_configuration(home: Home) -> None:
    """Labels too."""
    home.registry.add("told", "1", layers=_content("v"), config={"Labels": {"who": "me"}})
    spec = pb.ImageSpec(image=home.registry.name("told", "1"))
    await home.pull(spec.image)
    answer = await home.service.ImageStatus(pb.ImageStatusRequest(image=spec, verbose=True), None)

    assert '"who": "me"' in answer.info["info"]
    assert '"Cmd": ["sh"]' in answer.info["info"]


async def test_removing_one_tag_removes_the_image(home: Home) -> None:
    """Many at once, and again; an absent one is no error."""
    home.registry.add("app", "1", "2", layers=_content("r"))
    home.registry.add("other/app", "1", layers=_content("o"))
    names = [home.registry.name("app", "1"), home.registry.name("app", "2")]
    for name in names:
        await home.pull(name)
    await asyncio.gather(*(home.remove(name) for name in names * 4))
    await home.remove(names[0])

    assert [await home.status(name) for name in names] == [None, None]


async def test_an_image_in_use_stays(home: Home) -> None:
    """With the names of who uses it; once they ended it may go."""
    image = await home.status(TEST_IMAGE)
    assert image is not None
    run = ("run", "-d", "--net", "none", "--name", "user", TEST_IMAGE, "sleep", "1000000")
    await asyncio.to_thread(home.engine.docker, *run)
    try:
        with pytest.raises(CriError) as refused:
            await home.remove(image.id)
    finally:
        await asyncio.to_thread(home.engine.docker, "rm", "-f", "user")

    assert (refused.value.code, refused.value.reason) == (Code.FAILED_PRECONDITION, "IMAGE_IN_USE")
    assert refused.value.metadata["containers"] == "user"
    assert await home.status(TEST_IMAGE) == image


async def test_usage_grows_with_an_image(home: Home) -> None:
    """By its layers; the inodes are the file system's."""
    fresh = home.made(home.puller)
    before = await fresh.ImageFsInfo(pb.ImageFsInfoRequest(), None)
    home.registry.add("fat", "1", layers=[{"fat": os.urandom(3_000_000)}])
    await home.pull(home.registry.name("fat", "1"))
    after = await home.made(home.puller).ImageFsInfo(pb.ImageFsInfoRequest(), None)

    images, containers = after.image_filesystems[0], after.container_filesystems[0]
    assert images.fs_id.mountpoint == str(home.engine.folder / "data")
    assert images.used_bytes.value - before.image_filesystems[0].used_bytes.value >= 3_000_000
    assert containers.fs_id == images.fs_id
    assert images.inodes_used.value > 0


@pytest.mark.parametrize(
    ("auth", "demand"),
    [
        pytest.param({"username": "ann", "password": CANARY}, "basic", id="basic"),
        pytest.param({"username": "ann", "password": CANARY}, "bearer", id="bearer"),
        pytest.param({"auth": "YW5uOmNhbmFyeS0zZjlhLXNlY3JldA=="}, "basic", id="both-in-one"),
        pytest.param({"registry_token": "stub-token"}, "bearer", id="registry-token"),
    ],
)
async def test_credentials_open_the_registry(home: Home, auth: dict[str, str], demand: str) -> None:
    """Whichever way it asks for them."""
    home.registry.add("private", "1", layers=_content("p"))
    setattr(home.registry.faults, demand, ("ann", CANARY))

    await home.pull(home.registry.name("private", "1"), None, server_address=home.registry.host, **auth)


@pytest.mark.fault("F34")
@pytest.mark.parametrize("demand", ["basic", "bearer"])
async def test_wrong_credentials_are_told_and_never_shown(
    home: Home, demand: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in the error, nor in logs and spans, although the registry repeats them."""
    home.registry.add("private", "1", layers=_content("p"))
    setattr(home.registry.faults, demand, ("ann", "another"))
    traces = telemetry.setup("images")
    error = await home.refusal(home.registry.name("private", "1"), username="ann", password=CANARY)
    spans = [span.to_json() for span in traces.ring.spans()]
    traces.shutdown()
    shown = [*spans, error.message, repr(error.metadata), repr(error.__cause__), *capfd.readouterr()]

    assert error.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
    assert any("docker images.pull" in span for span in spans)
    assert CANARY not in " ".join(shown)
    assert any(seen.authorization.startswith("Basic ") for seen in home.registry.requests)


@pytest.mark.fault("F34")
async def test_credentials_for_another_host_stay_here(home: Home) -> None:
    """They are not even sent."""
    home.registry.add("private", "1", layers=_content("p"))
    home.registry.faults.basic = ("ann", CANARY)
    error = await home.refusal(
        home.registry.name("private", "1"), username="ann", password=CANARY, server_address="r.example"
    )

    assert error.code is Code.UNAUTHENTICATED
    assert {seen.authorization for seen in home.registry.requests} == {""}


@pytest.mark.fault("F34")
@pytest.mark.parametrize(
    ("faults", "code", "reason"),
    [
        pytest.param({}, Code.NOT_FOUND, "IMAGE_NOT_FOUND", id="absent"),
        pytest.param(
            {"manifest_status": 403, "code": "DENIED"},
            Code.PERMISSION_DENIED,
            "IMAGE_ACCESS_DENIED",
            id="403",
        ),
        pytest.param({"manifest_status": 500}, Code.UNAVAILABLE, "REGISTRY_FAILED", id="500"),
        pytest.param(
            {"manifest_status": 429, "code": "TOOMANYREQUESTS"},
            Code.RESOURCE_EXHAUSTED,
            "REGISTRY_RATE_LIMITED",
            id="429",
        ),
        pytest.param(
            {"blob_status": 404, "code": "BLOB_UNKNOWN"}, Code.NOT_FOUND, "IMAGE_NOT_FOUND", id="blob"
        ),
        pytest.param({"corrupt": True}, Code.DATA_LOSS, "IMAGE_CORRUPT", id="wrong-digest"),
        pytest.param({"resets": 100}, Code.UNAVAILABLE, "REGISTRY_UNREACHABLE", id="reset-at-90-percent"),
    ],
)
async def test_a_registry_that_fails_has_its_word(
    home: Home, faults: dict[str, Any], code: Code, reason: str
) -> None:
    """And no layer is left."""
    if faults:
        home.registry.add("app", "1", layers=_content("f")[:1])
    home.registry.faults = Faults(**faults)
    error = await home.refusal(home.registry.name("app" if faults else "none", "1"))

    assert (error.code, error.reason) == (code, reason), error.message
    assert error.message.startswith(f"Failed to pull image '{home.registry.host}/")
    assert await home.listed() == []


@pytest.mark.fault("F34")
@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        pytest.param("127.0.0.1:1/app:1", Code.UNAVAILABLE, "REGISTRY_UNREACHABLE", id="refused"),
        pytest.param("registry.invalid/app:1", Code.UNAVAILABLE, "REGISTRY_UNREACHABLE", id="no-such-host"),
        pytest.param("Not A Name", Code.INVALID_ARGUMENT, "IMAGE_NAME_INVALID", id="no-name"),
    ],
)
async def test_a_registry_that_is_not_there_is_told(home: Home, name: str, code: Code, reason: str) -> None:
    """Soon."""
    error = await home.refusal(name)

    assert (error.code, error.reason) == (code, reason), error.message


@pytest.mark.fault("F34")
async def test_a_pull_goes_on_after_a_broken_connection(home: Home) -> None:
    """The engine asks for the rest."""
    home.registry.add("app", "1", layers=_content("g")[:1])
    home.registry.faults.resets = 1

    image = await home.pull(home.registry.name("app", "1"))

    assert (await home.listed())[0].id == image
    assert home.registry.faults.resets == 0


@pytest.mark.fault("F34")
async def test_a_registry_that_stops_half_way_fails_the_pull(home: Home) -> None:
    """After the time without progress; the same pull works later."""
    home.registry.add("app", "1", layers=_content("s"))
    home.registry.faults.gate = gate = threading.Event()
    error = await home.refusal(home.registry.name("app", "1"), home.impatient(2.0))
    gate.set()
    home.registry.faults = Faults()

    assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, "IMAGE_PULL_STALLED")
    assert await home.listed() == []
    assert await home.pull(home.registry.name("app", "1"))


@pytest.mark.fault("F34")
async def test_a_slow_registry_is_waited_for(home: Home) -> None:
    """As long as bytes come, although the whole takes longer than a wait may."""
    home.registry.add("app", "1", layers=_content("d"))
    home.registry.faults.drip_seconds = 0.1
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await home.pull(home.registry.name("app", "1"), home.impatient(4.0))

    assert loop.time() - begun > 4.0


@pytest.mark.fault("F34")
async def test_a_pull_ends_with_the_last_who_waits(home: Home) -> None:
    """One of two goes: the other gets its image, and it was asked for once. Both go: the engine stops."""
    home.registry.add("app", "1", layers=_content("c")[:1])
    name, gate = home.registry.name("app", "1"), threading.Event()
    home.registry.faults.gate = gate
    one, two = home.group.create_task(home.pull(name)), home.group.create_task(home.pull(name))
    await home.until(lambda: home.registry.blobs_asked() >= 2)
    one.cancel()
    await asyncio.wait([one])
    gate.set()
    image = await two
    await home.remove(image)
    blobs = home.registry.blobs_asked()

    home.registry.faults.gate = gate = threading.Event()
    cancelled = home.puller.counts.cancelled
    third = home.group.create_task(home.pull(name))
    await home.until(lambda: home.registry.blobs_asked() >= 2 * blobs)
    third.cancel()
    await asyncio.wait([third])
    await home.until(lambda: home.puller.counts.cancelled == cancelled + 1)
    gate.set()

    assert blobs == 2
    assert await home.listed() == []


async def test_layers_are_told_in_the_span_and_the_counts(home: Home) -> None:
    """Bytes as the engine tells them."""
    home.registry.add("app", "1", layers=_content("t"))
    traces = telemetry.setup("images")
    before = home.puller.counts.gauges()
    await home.pull(home.registry.name("app", "1"))
    after = home.puller.counts.gauges()
    span = next(span for span in traces.ring.spans() if span.name == "docker images.pull")
    traces.shutdown()
    pulled = [event for event in span.events if (event.attributes or {}).get("tripod.image.step") == "pulled"]

    assert len(pulled) == 2
    assert after["tripod_cri_image_pulled_layers_total"] - before["tripod_cri_image_pulled_layers_total"] == 2
    assert (
        after["tripod_cri_image_pulled_bytes_total"] - before["tripod_cri_image_pulled_bytes_total"] > 200_000
    )
    assert (span.attributes or {})["tripod.image.layers_pulled"] == 2
