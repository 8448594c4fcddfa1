"""ImageService on the engine's images."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common import failpoints
from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import Code
from services.common.logs import get_logger
from services.kubelet.cri import credentials, images, naming, reference
from services.kubelet.cri.credentials import Credentials
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import CriError, invalid
from services.kubelet.cri.imageusage import ImageUsage
from services.kubelet.cri.pulls import Puller
from services.kubelet.cri.reference import HUB, Reference
from services.kubelet.cri.sandboxes import Holdings

log = get_logger(__name__)
_PULL = failpoints.step("cri.image.pull")
_REMOVE = failpoints.step("cri.image.remove")
_PAGE = 200


class ImageService(pb_grpc.ImageServiceServicer):
    """Serves `runtime.v1.ImageService`."""

    def __init__(
        self,
        *,
        client: DockerClient,
        holdings: Holdings,
        puller: Puller,
        usage: ImageUsage,
        clock: Clock,
        pause_image: str,
    ) -> None:
        self._client = client
        self._holdings = holdings
        self._puller = puller
        self._usage = usage
        self._clock = clock
        self._pause_image = pause_image
        # An image never changes: what was seen of one, by its id, holds as long as it is there.
        self._removing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._users: dict[str, str] = {}

    async def ListImages(self, request: pb.ListImagesRequest, context: Any) -> pb.ListImagesResponse:
        """List images, or the one that the filter names."""
        return pb.ListImagesResponse(images=await self._list(request.filter))

    async def StreamImages(
        self, request: pb.StreamImagesRequest, context: Any
    ) -> AsyncIterator[pb.StreamImagesResponse]:
        """Stream what `ListImages` lists, each once."""
        listed = await self._list(request.filter)
        for start in range(0, len(listed), _PAGE):
            yield pb.StreamImagesResponse(images=listed[start : start + _PAGE])

    async def _list(self, wanted: pb.ImageFilter) -> list[pb.Image]:
        if wanted.image.image:
            found = await self._find(wanted.image)
            return [self._image(found)] if found else []
        listed = await self._client.images()
        fresh = [item["Id"] for item in listed if item["Id"] not in self._users]
        seen = await asyncio.gather(*(self._client.image(image_id) for image_id in fresh))
        known = {item["Id"]: self._users.get(item["Id"], "") for item in listed}
        known.update({str(found["Id"]): images.user_of(found) for found in seen if found is not None})
        gone = set(fresh) - {found["Id"] for found in seen if found is not None}
        self._users = {image_id: user for image_id, user in known.items() if image_id not in gone}
        return [
            images.image(item, user=known[item["Id"]], pinned=self._pause_image)
            for item in listed
            if item["Id"] not in gone
        ]

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: Any) -> pb.ImageStatusResponse:
        """Return an image; nothing when there is none."""
        found = await self._find(request.image)
        if found is None:
            return pb.ImageStatusResponse()
        told = images.info(found) if request.verbose else {}
        return pb.ImageStatusResponse(image=self._image(found), info=told)

    async def PullImage(self, request: pb.PullImageRequest, context: Any) -> pb.PullImageResponse:
        """Pull an image; returns the engine's id of it.

        A pull that nobody waits for any more is cancelled; the same one by the same
        identity is done once for all who ask meanwhile.
        """
        name = _name(request.image)
        wanted = reference.parse(name)
        async with _PULL:
            await self._puller.pull(name, wanted, await self._identity(request.auth, wanted))
        await _PULL.recorded()
        found = await self._client.image(str(wanted))
        if found is None:
            raise CriError(
                f"Image {name!r} was removed while it was pulled",
                code=Code.ABORTED,
                reason="IMAGE_REMOVED",
                metadata={"image": name},
            )
        return pb.PullImageResponse(image_ref=str(found["Id"]))

    async def _identity(self, auth: pb.AuthConfig, wanted: Reference) -> Credentials | None:
        """Take the request's credentials for this registry, else those of `docker login`."""
        brought = credentials.from_request(auth, wanted.host)
        if brought is None:
            host = "" if wanted.host == HUB else wanted.host
            return credentials.from_login(await self._client.stored_login(host))
        return brought

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: Any) -> pb.RemoveImageResponse:
        """Remove an image with all its tags. One that a container uses stays. May be repeated."""
        found = await self._find(request.image)
        if found is None:
            return pb.RemoveImageResponse()
        # One after the other: who is answered first must not see what another has not removed yet.
        image_id = str(found["Id"])
        async with self._removing.setdefault(image_id, asyncio.Lock()):
            await self._remove(image_id, request.image.image)
        return pb.RemoveImageResponse()

    async def _remove(self, image_id: str, name: str) -> None:
        if users := await self._users_of(image_id):
            raise CriError(
                f"Image {name!r} is in use by {', '.join(users)}",
                code=Code.FAILED_PRECONDITION,
                reason="IMAGE_IN_USE",
                metadata={"image": name, "containers": ",".join(users)},
            )
        async with _REMOVE:
            await self._client.remove_image(image_id)
        self._users.pop(image_id, None)
        await _REMOVE.recorded()

    async def _users_of(self, image_id: str) -> list[str]:
        """Name the containers that were made of an image, or have it as a volume, and have not ended."""
        made = images.users(image_id, await self._client.image_containers(image_id))
        mounting = [
            images.container_name(item)
            for item, record in await self._holdings.listing(naming.CONTAINER)
            if images.holds(item)
            and any(mount["image_ref"] == image_id for mount in record.image_mounts.values())
        ]
        return sorted({*made, *mounting})

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: Any) -> pb.ImageFsInfoResponse:
        """Return what images and containers take of the file system under the engine's root."""
        root = str((await self._client.info()).get("DockerRootDir") or "/var/lib/docker")
        used = await self._usage.look()
        place, now = pb.FilesystemIdentifier(mountpoint=root), unix_nanoseconds(self._clock.now())
        inodes = await asyncio.to_thread(_inodes, root)
        made = [
            pb.FilesystemUsage(
                timestamp=now,
                fs_id=place,
                used_bytes=pb.UInt64Value(value=count),
                inodes_used=None if inodes is None else pb.UInt64Value(value=inodes),
            )
            for count in (used.image_bytes, used.container_bytes)
        ]
        return pb.ImageFsInfoResponse(image_filesystems=made[:1], container_filesystems=made[1:])

    async def _find(self, spec: pb.ImageSpec) -> Mapping[str, Any] | None:
        for wanted in reference.candidates(_name(spec)):
            found = await self._client.image(wanted)
            if found is not None:
                return found
        return None

    def _image(self, found: Mapping[str, Any]) -> pb.Image:
        user = images.user_of(found)
        return images.image(found, user=user, pinned=self._pause_image)


def _name(spec: pb.ImageSpec) -> str:
    if not spec.image:
        raise invalid("image.image", "must not be empty")
    if spec.runtime_handler:
        raise invalid("image.runtime_handler", f"{spec.runtime_handler!r} is not known; leave it empty")
    return spec.image


def _inodes(root: str) -> int | None:
    """Count the inodes in use of the file system; None when the engine's root cannot be seen from here."""
    try:
        found = os.statvfs(root)
    except OSError:
        return None
    return found.f_files - found.f_ffree
