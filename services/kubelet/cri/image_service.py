"""ImageService on the engine's images."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import Code
from services.kubelet.cri import convert
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import CriError, EngineRefusedError, invalid
from services.kubelet.cri.stats_service import chunks


class ImageService(pb_grpc.ImageServiceServicer):
    """Serves `runtime.v1.ImageService`."""

    def __init__(self, client: DockerClient, clock: Clock, *, pull_deadline_seconds: float) -> None:
        self._client = client
        self._clock = clock
        self._pull_deadline = pull_deadline_seconds

    async def ListImages(self, request: pb.ListImagesRequest, context: Any) -> pb.ListImagesResponse:
        """List images, or the one that the filter names."""
        wanted = request.filter.image.image
        if wanted:
            found = await self._client.image(wanted)
            return pb.ListImagesResponse(images=[convert.image_from_inspect(found)] if found else [])
        return pb.ListImagesResponse(images=[convert.image(item) for item in await self._client.images()])

    async def StreamImages(
        self, request: pb.StreamImagesRequest, context: Any
    ) -> AsyncIterator[pb.StreamImagesResponse]:
        """Stream what `ListImages` lists, each once."""
        listed = await self.ListImages(pb.ListImagesRequest(filter=request.filter), context)
        for part in chunks(listed.images):
            yield pb.StreamImagesResponse(images=part)

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: Any) -> pb.ImageStatusResponse:
        """Return an image; nothing when there is none."""
        if not request.image.image:
            raise invalid("image.image", "must not be empty")
        found = await self._client.image(request.image.image)
        return pb.ImageStatusResponse(image=convert.image_from_inspect(found) if found else None)

    async def PullImage(self, request: pb.PullImageRequest, context: Any) -> pb.PullImageResponse:
        """Pull an image; returns the engine's id of it."""
        name = request.image.image
        if not name:
            raise invalid("image.image", "must not be empty")
        auth = {"username": request.auth.username, "password": request.auth.password}
        try:
            await self._client.pull(
                convert.with_tag(name), auth if request.auth.username else None, self._pull_deadline
            )
        except EngineRefusedError as error:
            code = Code.NOT_FOUND if error.status == 404 else Code.UNKNOWN
            raise CriError(
                f"Failed to pull image {name!r}: {error.message}",
                code=code,
                reason="IMAGE_PULL_FAILED",
                metadata={"image": name},
            ) from error
        found = await self._client.image(name)
        return pb.PullImageResponse(image_ref=str(found["Id"]) if found else name)

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: Any) -> pb.RemoveImageResponse:
        """Remove an image with all its tags."""
        if not request.image.image:
            raise invalid("image.image", "must not be empty")
        found = await self._client.image(request.image.image)
        if found is not None:
            await self._client.remove_image(str(found["Id"]))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: Any) -> pb.ImageFsInfoResponse:
        """Return the file system under the engine's root, as far as it can be seen from here."""
        info = await self._client.info()
        root = str(info.get("DockerRootDir", "/var/lib/docker"))
        usage = pb.FilesystemUsage(
            timestamp=unix_nanoseconds(self._clock.now()), fs_id=pb.FilesystemIdentifier(mountpoint=root)
        )
        try:
            found = os.statvfs(root)
            usage.used_bytes.value = (found.f_blocks - found.f_bfree) * found.f_frsize
            usage.inodes_used.value = found.f_files - found.f_ffree
        except OSError:
            usage.used_bytes.value = sum(int(item.get("Size", 0)) for item in await self._client.images())
        return pb.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])
