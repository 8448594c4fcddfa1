"""Creates containers: what a request needs from the host and the engine is gathered, then one is made."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri import convert, imagecheck, naming, profiles, security
from services.kubelet.cri.convert import Host, Surroundings
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import EngineRefusedError, invalid, not_ready
from services.kubelet.cri.imagevolumes import ImageVolumes
from services.kubelet.cri.inflight import InFlight
from services.kubelet.cri.naming import Record
from services.kubelet.cri.register import digest
from services.kubelet.cri.sandboxes import Holdings, Sandboxes

Json = Mapping[str, Any]


class Creation:
    """Makes containers in sandboxes. A request that comes again gets the same container."""

    def __init__(
        self,
        client: DockerClient,
        holdings: Holdings,
        sandboxes: Sandboxes,
        image_volumes: ImageVolumes,
        inflight: InFlight[str],
        host: Host,
    ) -> None:
        self._client = client
        self._holdings = holdings
        self._sandboxes = sandboxes
        self._image_volumes = image_volumes
        self._inflight = inflight
        self._host = host

    async def create(self, request: pb.CreateContainerRequest) -> str:
        """Create a container; returns its id. Raises SANDBOX_NOT_READY, IMAGE_REFUSED, REQUEST_INVALID."""
        wanted = request.config
        (inspected, sandbox), image = await asyncio.gather(
            self._holdings.sandbox(request.pod_sandbox_id), self._client.image(wanted.image.image)
        )
        wired = self._sandboxes.wired(inspected["Id"], sandbox)
        if convert.sandbox_state(inspected["State"]["Status"], wired=wired) != pb.SANDBOX_READY:
            raise not_ready(request.pod_sandbox_id)
        record = convert.container_record(wanted, inspected["Id"], sandbox)
        if image is not None:  # Else the engine says so.
            imagecheck.check(image, wanted.working_dir)
        context = wanted.linux.security_context
        await self._resolve_target(context.namespace_options, inspected["Id"])
        volumes = await self._image_volumes.prepare(wanted.mounts)
        record = dataclasses.replace(record, image_mounts={path: v.told for path, v in volumes.items()})
        around = dataclasses.replace(
            await self._surroundings(context, inspected),
            image_mounts={path: volume.mount for path, volume in volumes.items()},
        )
        config = convert.container_config(wanted, record, sandbox, self._host, around)
        user = config.get("User") or _image_user(image)
        strict = security.needs_strict_groups(context, user)

        async def make() -> str:
            if strict:
                return await self._make_strictly(config, user, record, sandbox)
            return await self._make(config, record, sandbox)

        return await self._inflight.join(f"container/{inspected['Id']}/{record.name}/{record.attempt}", make)

    async def _resolve_target(self, options: pb.NamespaceOption, sandbox_id: str) -> None:
        """See that a container whose processes are to be seen is one of the same pod; write its full id."""
        if options.pid != pb.TARGET or not options.target_id:
            return
        target, record = await self._holdings.container(options.target_id)
        if record.sandbox_id != sandbox_id:
            raise invalid("config.linux.security_context.namespace_options.target_id", "is of another pod")
        options.target_id = target["Id"]

    async def _surroundings(self, context: pb.LinuxContainerSecurityContext, sandbox: Json) -> Surroundings:
        resolv_conf = self._sandboxes.resolv_conf(sandbox["Id"])
        profile = security.seccomp_file(context)
        host = sandbox.get("HostConfig") or {}
        runtime = str(host.get("Runtime") or "")
        return Surroundings(
            cgroup_parent=str(host.get("CgroupParent") or ""),
            # The engine fills its default in; that one need not be named.
            runtime=runtime if runtime != self._host.default_runtime else "",
            resolv_conf=str(resolv_conf) if resolv_conf.exists() else "",
            seccomp_profile=await asyncio.to_thread(profiles.read, Path(profile)) if profile else "",
        )

    async def _make(self, config: Json, record: Record, sandbox: Record) -> str:
        """Create, or return the one that was made by the same request before.

        One that was made otherwise and never started makes room.
        """
        try:
            return await self._holdings.create(config, record, sandbox)
        except EngineRefusedError as error:
            found = await self._holdings.attempt(record, sandbox) if error.status == 409 else None
            if found is None:
                raise
            if found[0]["Config"]["Labels"].get(naming.DIGEST_LABEL) == digest(config):
                return str(found[0]["Id"])
            if found[0]["State"]["Status"] != "created":
                raise
            await self._holdings.remove(found[0]["Id"])
            return await self._holdings.create(config, record, sandbox)

    async def _make_strictly(self, config: Json, user: str, record: Record, sandbox: Record) -> str:
        """Create a container without the groups that its image gives its user.

        The engine leaves those out when the group is said with the user. Which one that is, the image knows,
        and of a container alone can that be read. The first one has this one's name, so that what a kill
        leaves of it makes room.
        """
        first = await self._make(config, record, sandbox)
        passwd = await self._client.read_file(first, "/etc/passwd")
        await self._holdings.remove(first)
        exact = {**config, "User": f"{user or '0'}:{security.primary_group(passwd, user)}"}
        return await self._make(exact, record, sandbox)


def _image_user(image: Json | None) -> str:
    return str(((image or {}).get("Config") or {}).get("User") or "")
