"""Volumes that are images, read-only (the CRI's `Mount.image`).

From API 1.48 on the engine has them. Below, we describe the image's layers to the
engine as an overlay: an anonymous volume of its `local` driver, so that the engine
itself mounts them when the container starts, unmounts them when it ends, and removes
the volume with the container. Nothing is mounted by us, so that a kill of this server
leaves no mount, and it needs neither a capability nor a shared mount for it. It needs
the overlay2 driver; a sub path also sight of the engine's data root. The engine binds
nothing from within its data root, so that a single file cannot be had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import Code
from services.common.logs import get_logger
from services.kubelet.cri import reference
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import CriError, EngineRefusedError, invalid
from services.kubelet.cri.imagelayers import LayerError, find
from services.kubelet.cri.naming import OWNER_LABEL

log = get_logger(__name__)
Json = Mapping[str, Any]
NATIVE_API = (1, 48)
# mount(2) takes one page of options.
_OPTIONS_LIMIT = 4095
# They would end a path within the options, and an image could go on with options of its own.
_UNSAFE = frozenset(":,\\\n\0")


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """A mount for the engine, and what the container's status tells of it."""

    mount: Json
    told: Mapping[str, str]


class ImageVolumes:
    """Prepares mounts of images."""

    def __init__(self, client: DockerClient, owner: str, state_directory: Path) -> None:
        self._client = client
        self._owner = owner
        self._empty = state_directory / "empty"
        self._stuck: set[str] = set()

    async def prepare(self, mounts: Iterable[pb.Mount]) -> dict[str, ImageVolume]:
        """Return the volumes by their path in the container; other mounts are left out. Raises `CriError`."""
        wanted = [mount for mount in mounts if checked(mount)]
        return {mount.container_path: await self._prepare(mount) for mount in wanted}

    async def _prepare(self, mount: pb.Mount) -> ImageVolume:
        image = await self._find(mount.image.image)
        told = {
            "image": mount.image.user_specified_image or mount.image.image,
            "image_ref": str(image["Id"]),
            "sub_path": mount.image_sub_path,
        }
        api = str((await self._client.version())["ApiVersion"])
        if tuple(int(part) for part in api.split(".")) >= NATIVE_API:
            return ImageVolume(native(mount, told["image_ref"]), told)
        layers = layers_of(image)
        parts = await asyncio.to_thread(_parts, layers, mount.image_sub_path, told["image"])
        if len(",".join(map(str, parts))) > _OPTIONS_LIMIT // 2:
            parts = await asyncio.to_thread(shortened, parts)
        await asyncio.to_thread(self._empty.mkdir, parents=True, exist_ok=True)
        made = overlay(mount.container_path, parts, told["image"], owner=self._owner, empty=self._empty)
        return ImageVolume(made, told)

    async def _find(self, name: str) -> Json:
        for candidate in reference.candidates(name):
            if (found := await self._client.image(candidate)) is not None:
                return found
        raise CriError(
            f"Image {name!r} of a volume is not there; pull it first",
            code=Code.NOT_FOUND,
            reason="IMAGE_NOT_FOUND",
            metadata={"image": name},
        )

    async def drop_leftovers(self) -> None:
        """Remove volumes of ours whose container went without them.

        Others removed it, or the engine could not: one of 20.10 that was restarted under a running
        container counts a mount that is not there, and removes the volume after its next start.
        """
        for name in await self.leftovers():
            try:
                await self._client.remove_volume(name)
            except EngineRefusedError as error:
                if name not in self._stuck:
                    log.warning("Left a volume for later that the engine keeps", error=error.message)
                self._stuck.add(name)

    async def leftovers(self) -> list[str]:
        """Name volumes of ours that no container has."""
        found = await self._client.unused_volumes(f"{OWNER_LABEL}={self._owner}")
        self._stuck.intersection_update(found)
        return found


def checked(mount: pb.Mount) -> bool:
    """Tell whether a mount is an image's. Raises REQUEST_INVALID for one that cannot be."""
    where = f"config.mounts[{mount.container_path}]"
    if not mount.image.image:
        if mount.image_sub_path:
            raise invalid(f"{where}.image_sub_path", "needs an image")
        return False
    if mount.host_path:
        raise invalid(f"{where}.host_path", "must be empty, as the mount is an image's")
    if not mount.readonly:
        raise invalid(f"{where}.readonly", "must be set, as an image is mounted read-only alone")
    if mount.propagation != pb.PROPAGATION_PRIVATE:
        raise invalid(f"{where}.propagation", "must be private, as the mount is an image's")
    if mount.image_sub_path.startswith("/") or ".." in mount.image_sub_path.split("/"):
        raise invalid(f"{where}.image_sub_path", "must be relative and without ..")
    return True


def native(mount: pb.Mount, image_id: str) -> dict[str, Any]:
    """Build the mount for an engine that has volumes of images."""
    made: dict[str, Any] = {
        "Type": "image",
        "Source": image_id,
        "Target": mount.container_path,
        "ReadOnly": True,
    }
    if mount.image_sub_path:
        made["ImageOptions"] = {"Subpath": mount.image_sub_path}
    return made


def layers_of(image: Json) -> tuple[Path, ...]:
    """Return the folders of an image's layers, topmost first. Raises IMAGE_VOLUME_UNSUPPORTED."""
    driver = image.get("GraphDriver") or {}
    name, data = driver.get("Name", "none"), driver.get("Data") or {}
    if name != "overlay2":
        raise _unsupported(str(image["Id"]), f"the engine keeps images by {name}, not by overlay2")
    lower = str(data.get("LowerDir") or "")
    found = [str(data.get("UpperDir") or ""), *lower.split(":")]
    return tuple(Path(place) for place in found if place)


def overlay(target: str, parts: Sequence[Path], image: str, *, owner: str, empty: Path) -> dict[str, Any]:
    """Build the mount of parts of an image, topmost first. Raises IMAGE_VOLUME_UNSUPPORTED.

    An overlay needs two layers at least: the folder `empty` goes below one alone. As it has no
    upper layer it is read-only for anybody, also for one who may mount; the engine takes no
    `ReadOnly` for anonymous volumes.
    """
    if not parts:
        raise _unsupported(image, "it has no layers")
    if len(parts) == 1:
        parts = [*parts, empty]
    if any(_UNSAFE & set(str(part)) for part in parts):
        raise _unsupported(image, "a path of it has a character that mount options cannot have")
    options = f"ro,lowerdir={':'.join(map(str, parts))}"
    if len(options) > _OPTIONS_LIMIT:
        raise _unsupported(image, f"it has {len(parts)} layers, more than mount options have room for")
    driver = {"Name": "local", "Options": {"type": "overlay", "device": "overlay", "o": options}}
    return {
        "Type": "volume",
        "Target": target,
        "VolumeOptions": {"NoCopy": True, "Labels": {OWNER_LABEL: owner}, "DriverConfig": driver},
    }


def shortened(parts: Sequence[Path]) -> tuple[Path, ...]:
    """Write layers by the short links that overlay2 keeps for this, where they can be seen."""
    return tuple(_short(part) for part in parts)


def _short(part: Path) -> Path:
    try:
        diff = next(folder for folder in (part, *part.parents) if folder.name == "diff")
        link = (diff.parent / "link").read_text().strip()
    except (OSError, StopIteration):
        return part
    return diff.parent.parent / "l" / link / part.relative_to(diff)


def _parts(layers: Sequence[Path], sub_path: str, image: str) -> tuple[Path, ...]:
    if not sub_path.strip("/."):
        return tuple(layers)
    if not all(layer.is_dir() for layer in layers):
        raise _unsupported(image, "its sub path needs sight of the engine's data root")
    try:
        found = find(layers, sub_path)
        if not found[0].is_dir():
            raise LayerError("is a file, and this engine mounts folders of images alone")
        return found
    except (LayerError, OSError) as error:
        raise CriError(
            f"Path {sub_path!r} of image {image} cannot be mounted: it {error}",
            code=Code.FAILED_PRECONDITION,
            reason="IMAGE_SUB_PATH_UNUSABLE",
            metadata={"image": image, "sub_path": sub_path},
        ) from error


def _unsupported(image: str, why: str) -> CriError:
    return CriError(
        f"Image {image} cannot be a volume here: {why}; a Docker Engine from 28.0 on can mount any image",
        code=Code.FAILED_PRECONDITION,
        reason="IMAGE_VOLUME_UNSUPPORTED",
        metadata={"image": image},
    )
