"""Paths in layers, and mounts of images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import Code
from services.kubelet.cri import imagevolumes
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.imagelayers import LayerError, find

WHITEOUT = object()
Tree = Mapping[str, object]


def layers(folder: Path, *trees: Tree) -> tuple[Path, ...]:
    """Make layers, topmost first: a file by its text, a folder by None, a link by its target."""
    made = []
    for number, tree in enumerate(trees):
        root = folder / str(number)
        root.mkdir()
        for name, what in tree.items():
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if what is None:
                place.mkdir(exist_ok=True)
            elif what is WHITEOUT:
                _whiteout(place)
            elif isinstance(what, Path):
                place.symlink_to(what)
            else:
                place.write_text(str(what))
        made.append(root)
    return tuple(made)


def _whiteout(place: Path) -> None:
    try:
        os.mknod(place, 0o20000, 0)
    except PermissionError:
        pytest.skip("this file system lets nobody make a whiteout")


def seen(folder: Path, found: tuple[Path, ...]) -> list[str]:
    """Write what was found, relative to the layers' folder."""
    return [str(place.relative_to(folder)) for place in found]


TWO: tuple[Tree, Tree] = (
    {"etc/app/new": "2", "bin": Path("usr/bin"), "usr/bin/tool": "2", "deep/abs": Path("/etc/app")},
    {
        "etc/app/old": "1",
        "etc/passwd": "1",
        "usr/bin/tool": "1",
        "loop": Path("loop"),
        "up": Path("../../etc"),
    },
)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param("etc", ["0/etc", "1/etc"], id="a-folder-of-both"),
        pytest.param("etc/app/", ["0/etc/app", "1/etc/app"], id="with-a-slash"),
        pytest.param("./etc//app/.", ["0/etc/app", "1/etc/app"], id="with-dots"),
        pytest.param("etc/passwd", ["1/etc/passwd"], id="a-file-below"),
        pytest.param("usr/bin/tool", ["0/usr/bin/tool"], id="the-upper-file"),
        pytest.param("bin", ["0/usr/bin", "1/usr/bin"], id="a-link"),
        pytest.param("bin/tool", ["0/usr/bin/tool"], id="through-a-link"),
        pytest.param("deep/abs", ["0/etc/app", "1/etc/app"], id="an-absolute-link-is-the-images"),
        pytest.param("up/passwd", ["1/etc/passwd"], id="nothing-is-above-the-root"),
    ],
)
def test_a_path_is_found_as_an_overlay_shows_it(tmp_path: Path, path: str, found: list[str]) -> None:
    """Topmost first."""
    assert seen(tmp_path, find(layers(tmp_path, *TWO), path)) == found


@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param("none", "does not exist", id="absent"),
        pytest.param("etc/passwd/x", "leads through a file", id="below-a-file"),
        pytest.param("loop", "too many symbolic links", id="loop"),
        pytest.param("etc/app/none/x", "does not exist", id="absent-in-the-middle"),
    ],
)
def test_what_is_not_there_is_not_found(tmp_path: Path, path: str, why: str) -> None:
    """With the reason."""
    with pytest.raises(LayerError, match=why):
        find(layers(tmp_path, *TWO), path)


def test_a_link_never_leaves_the_image(tmp_path: Path) -> None:
    """The host's file of that name is not looked at."""
    (tmp_path / "secret").write_text("the host's")
    made = layers(tmp_path, {"link": tmp_path / "secret", "a/b": Path("../../../../../../secret")})

    for path in ("link", "a/b"):
        with pytest.raises(LayerError, match="does not exist"):
            find(made, path)


def test_a_whiteout_hides_what_is_below(tmp_path: Path) -> None:
    """A folder that was made anew above it shows."""
    made = layers(tmp_path, {"new/x": "3"}, {"gone": WHITEOUT, "new": WHITEOUT}, {"gone": "1", "new/y": "1"})

    assert seen(tmp_path, find(made, "new")) == ["0/new"]
    with pytest.raises(LayerError, match="does not exist"):
        find(made, "gone")


def test_a_folder_hides_a_file_below_it_and_a_file_a_folder(tmp_path: Path) -> None:
    """Kinds do not merge."""
    made = layers(tmp_path, {"a/x": "2", "b": "2"}, {"a": "1", "b/y": "1"}, {"a/z": "0", "b/z": "0"})

    assert seen(tmp_path, find(made, "a")) == ["0/a"]
    assert seen(tmp_path, find(made, "b")) == ["0/b"]


def test_an_opaque_folder_ends_the_stack(tmp_path: Path) -> None:
    """As the layer says that replaced it."""
    made = layers(tmp_path, {"a/x": "2"}, {"a/y": "1"}, {"a/z": "0"})
    try:
        os.setxattr(made[1] / "a", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("this file system or user has no trusted attributes")

    assert seen(tmp_path, find(made, "a")) == ["0/a", "1/a"]


def test_a_device_or_a_pipe_is_not_given_out(tmp_path: Path) -> None:
    """Opening one may do things."""
    made = layers(tmp_path, {"a": None})
    os.mkfifo(made[0] / "pipe")

    with pytest.raises(LayerError, match="neither a folder nor a regular file"):
        find(made, "pipe")


def _mount(**more: Any) -> pb.Mount:
    values: dict[str, Any] = {"container_path": "/v", "readonly": True, "image": pb.ImageSpec(image="app:1")}
    return pb.Mount(**{**values, **more})


@pytest.mark.parametrize(
    ("mount", "field"),
    [
        pytest.param(_mount(readonly=False), "readonly", id="writable"),
        pytest.param(_mount(host_path="/x"), "host_path", id="with-a-host-path"),
        pytest.param(_mount(propagation=pb.PROPAGATION_BIDIRECTIONAL), "propagation", id="propagated"),
        pytest.param(_mount(image_sub_path="/etc"), "image_sub_path", id="absolute-sub-path"),
        pytest.param(_mount(image_sub_path="a/../b"), "image_sub_path", id="upward-sub-path"),
        pytest.param(_mount(image=None, image_sub_path="a"), "image_sub_path", id="sub-path-without-image"),
    ],
)
def test_a_mount_that_cannot_be_is_refused(mount: pb.Mount, field: str) -> None:
    """With its field."""
    with pytest.raises(CriError) as refused:
        imagevolumes.checked(mount)

    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.metadata["field"] == f"config.mounts[/v].{field}"


def test_other_mounts_are_left_alone() -> None:
    """They are the host's."""
    assert imagevolumes.checked(_mount())
    assert not imagevolumes.checked(pb.Mount(container_path="/v", host_path="/x"))


def test_a_new_engine_mounts_images_itself() -> None:
    """By their id; the sub path is an option."""
    made = imagevolumes.native(_mount(image_sub_path="etc"), "sha256:1")

    assert made == {
        "Type": "image",
        "Source": "sha256:1",
        "Target": "/v",
        "ReadOnly": True,
        "ImageOptions": {"Subpath": "etc"},
    }
    assert "ImageOptions" not in imagevolumes.native(_mount(), "sha256:1")


def _overlay(parts: list[Path]) -> dict[str, Any]:
    return imagevolumes.overlay("/v", parts, "app:1", owner="node", empty=Path("/empty"))


def test_layers_are_an_overlay_and_one_alone_has_nothing_below() -> None:
    """Read-only, as none has an upper layer."""
    two = _overlay([Path("/d/2"), Path("/d/1")])
    one = _overlay([Path("/d/1")])

    assert two["VolumeOptions"]["DriverConfig"]["Options"] == {
        "type": "overlay",
        "device": "overlay",
        "o": "ro,lowerdir=/d/2:/d/1",
    }
    assert (two["Type"], two["VolumeOptions"]["NoCopy"]) == ("volume", True)
    assert one["VolumeOptions"]["DriverConfig"]["Options"]["o"] == "ro,lowerdir=/d/1:/empty"


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([Path("/d/a,upperdir=x"), Path("/d/1")], id="an-option-in-a-name"),
        pytest.param([Path("/d/a:b"), Path("/d/1")], id="a-colon"),
        pytest.param([Path("/d/a\\b"), Path("/d/1")], id="a-backslash"),
        pytest.param([Path(f"/d/{'x' * 90}")] * 60, id="too-long"),
        pytest.param([], id="nothing"),
    ],
)
def test_what_mount_options_cannot_say_is_refused(parts: list[Path]) -> None:
    """An image never adds options of its own."""
    with pytest.raises(CriError) as refused:
        _overlay(parts)

    assert refused.value.code is Code.FAILED_PRECONDITION
    assert refused.value.reason == "IMAGE_VOLUME_UNSUPPORTED"
    assert "28.0" in refused.value.message


def test_layers_are_read_topmost_first() -> None:
    """From what the engine tells; another driver is told by its name."""
    data = {"UpperDir": "/d/3/diff", "LowerDir": "/d/2/diff:/d/1/diff"}
    image = {"Id": "sha256:1", "GraphDriver": {"Name": "overlay2", "Data": data}}

    assert imagevolumes.layers_of(image) == (Path("/d/3/diff"), Path("/d/2/diff"), Path("/d/1/diff"))
    with pytest.raises(CriError, match="vfs"):
        imagevolumes.layers_of({"Id": "sha256:1", "GraphDriver": {"Name": "vfs", "Data": None}})


def test_layers_are_written_by_their_short_links(tmp_path: Path) -> None:
    """Where overlay2's folders can be seen; parts of a layer too."""
    layer = tmp_path / ("f" * 64)
    (layer / "diff/etc").mkdir(parents=True)
    (layer / "link").write_text("ABC")

    short = imagevolumes.shortened([layer / "diff", layer / "diff/etc", Path("/elsewhere/diff")])

    assert short == (tmp_path / "l/ABC", tmp_path / "l/ABC/etc", Path("/elsewhere/diff"))


class Engine:
    """An engine of a chosen API version with one image, on a real socket."""

    def __init__(self, socket: Path) -> None:
        self.host = f"unix://{socket}"
        self.api = "1.41"
        self.image: dict[str, Any] = {}
        app = web.Application()
        app.router.add_get("/{version:.*}version", self._version)
        app.router.add_get("/{version}/images/{name:.*}/json", self._image)
        self.runner = web.AppRunner(app)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"Version": "1", "ApiVersion": self.api, "MinAPIVersion": "1.24"})

    async def _image(self, request: web.Request) -> web.Response:
        if request.match_info["name"] == "docker.io/library/app:1":
            return web.json_response(self.image)
        return web.json_response({"message": "No such image"}, status=404)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[Engine]:
    """Serve an engine."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        made = Engine(Path(folder) / "e.sock")
        await made.runner.setup()
        await web.UnixSite(made.runner, made.host.removeprefix("unix://")).start()
        yield made
        await made.runner.cleanup()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("api", "kind"),
    [
        pytest.param("1.41", "volume", id="20.10"),
        pytest.param("1.47", "volume", id="27"),
        pytest.param("1.48", "image", id="28"),
        pytest.param("1.52", "image", id="29"),
        pytest.param("1.100", "image", id="numbers-are-no-words"),
    ],
)
async def test_the_engines_version_decides_how(engine: Engine, tmp_path: Path, api: str, kind: str) -> None:
    """What the status tells is the same."""
    data = {"UpperDir": "/d/2/diff", "LowerDir": "/d/1/diff"}
    engine.image = {"Id": "sha256:1", "GraphDriver": {"Name": "overlay2", "Data": data}}
    client = DockerClient(engine.host)
    # The client settles its own version at its first call; later the engine may have been replaced.
    await client.version()
    engine.api = api
    volumes = imagevolumes.ImageVolumes(client, "node", tmp_path)
    made = await volumes.prepare([_mount(), pb.Mount(container_path="/h", host_path="/x")])
    with pytest.raises(CriError) as absent:
        await volumes.prepare([_mount(image=pb.ImageSpec(image="other:1"))])
    client.close()

    assert [(path, volume.mount["Type"]) for path, volume in made.items()] == [("/v", kind)]
    assert made["/v"].told == {"image": "app:1", "image_ref": "sha256:1", "sub_path": ""}
    assert (absent.value.code, absent.value.reason) == (Code.NOT_FOUND, "IMAGE_NOT_FOUND")


@pytest.mark.asyncio
async def test_a_part_needs_sight_of_the_layers(engine: Engine, tmp_path: Path) -> None:
    """Where they cannot be seen, that is told."""
    data = {"UpperDir": str(tmp_path / "unseen/diff")}
    engine.image = {"Id": "sha256:1", "GraphDriver": {"Name": "overlay2", "Data": data}}
    client = DockerClient(engine.host)
    with pytest.raises(CriError) as refused:
        await imagevolumes.ImageVolumes(client, "node", tmp_path).prepare([_mount(image_sub_path="etc")])
    client.close()

    assert (refused.value.code, refused.value.reason) == (
        Code.FAILED_PRECONDITION,
        "IMAGE_VOLUME_UNSUPPORTED",
    )
    assert "sight of the engine's data root" in refused.value.message
