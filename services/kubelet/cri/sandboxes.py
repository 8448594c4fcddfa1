"""What the engine holds of ours, and pod sandboxes made of pause containers."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.common import telemetry, telemetry_names
from services.common.errors import Code
from services.common.logs import get_logger
from services.kubelet.cri import convert, naming
from services.kubelet.cri.convert import Host
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import (
    ContainerNotFoundError,
    CriError,
    EngineRefusedError,
    SandboxNotFoundError,
)
from services.kubelet.cri.naming import KIND_LABEL, OWNER_LABEL, SANDBOX_LABEL, Record
from services.kubelet.cri.ports import PodNetwork

log = get_logger(__name__)
Json = Mapping[str, Any]
Owned = tuple[Json, Record]


class Holdings:
    """Finds our sandboxes and containers at the engine; what is not ours does not exist."""

    def __init__(self, client: DockerClient, owner: str) -> None:
        self._client = client
        self._owner = owner

    async def list(self, kind: str, *labels: str) -> list[Owned]:
        """List what is ours of a kind, newest first."""
        wanted = [f"{OWNER_LABEL}={self._owner}", f"{KIND_LABEL}={kind}", *labels]
        listed = await self._client.containers(wanted)
        owned = [(item, naming.decode(item["Labels"], self._owner)) for item in listed]
        return [(item, record) for item, record in owned if record is not None and record.kind == kind]

    async def find(self, kind: str, wanted: str) -> Owned | None:
        """Inspect one by id, or by a part of its id that names no other."""
        if not wanted:
            return None
        inspected = await self._client.inspect(wanted)
        if inspected is None or not inspected["Id"].startswith(wanted):
            return None
        record = naming.decode(inspected["Config"]["Labels"] or {}, self._owner)
        return (inspected, record) if record is not None and record.kind == kind else None

    async def sandbox_by_name(self, name: str) -> Owned | None:
        """Inspect a sandbox by its name at the engine; None for what is not ours."""
        inspected = await self._client.inspect(name)
        record = naming.decode(inspected["Config"]["Labels"] or {}, self._owner) if inspected else None
        return (inspected, record) if inspected and record and record.kind == naming.SANDBOX else None

    async def sandbox(self, sandbox_id: str) -> Owned:
        """Inspect a sandbox. Raises `SandboxNotFoundError`."""
        found = await self.find(naming.SANDBOX, sandbox_id)
        if found is None:
            raise SandboxNotFoundError(sandbox_id)
        return found

    async def container(self, container_id: str) -> Owned:
        """Inspect a container. Raises `ContainerNotFoundError`."""
        found = await self.find(naming.CONTAINER, container_id)
        if found is None:
            raise ContainerNotFoundError(container_id)
        return found


class Sandboxes:
    """Makes and ends sandboxes."""

    def __init__(
        self,
        client: DockerClient,
        holdings: Holdings,
        network: PodNetwork,
        host: Host,
        *,
        pause_binary: Path,
        state_directory: Path,
    ) -> None:
        self._client = client
        self._holdings = holdings
        self._network = network
        self._host = host
        self._pause_binary = pause_binary
        self._state = state_directory
        self._pause_lock = asyncio.Lock()
        self._pause_present = False

    def resolv_conf(self, sandbox_id: str) -> Path:
        """Name the file that holds a sandbox's DNS settings."""
        return self._state / "sandboxes" / sandbox_id / "resolv.conf"

    async def run(self, config: pb.PodSandboxConfig) -> str:
        """Make a ready sandbox; what a failure leaves behind is removed. Returns its id."""
        record = convert.sandbox_record(config)
        await self._ensure_pause_image()
        sandbox_id = await self._create(convert.sandbox_config(config, record, self._host), record)
        try:
            self._write_resolv_conf(sandbox_id, config.dns_config)
            await self._client.start(sandbox_id)
            if not record.host_network:
                await self._attach(sandbox_id, config.hostname)
        except BaseException:
            await asyncio.shield(self._discard(sandbox_id))
            raise
        return sandbox_id

    async def _create(self, config: Mapping[str, Any], record: Record) -> str:
        name = naming.sandbox_name(record)
        try:
            return await self._client.create(name, config)
        except EngineRefusedError as error:
            if error.status != 409:
                raise
            await self._clear_name(name)
            return await self._client.create(name, config)

    async def _clear_name(self, name: str) -> None:
        """Remove a sandbox that an interrupted attempt left under this name; never one that works."""
        found = await self._holdings.sandbox_by_name(name)
        if found is None:
            raise CriError(
                f"The engine has a container {name} that is not ours",
                code=Code.ALREADY_EXISTS,
                reason="NAME_TAKEN",
                metadata={"name": name},
            )
        sandbox_id = str(found[0]["Id"])
        if found[0]["State"]["Status"] == "running" and self._network.addresses(sandbox_id):
            raise CriError(
                f"Pod sandbox {name} runs already",
                code=Code.ALREADY_EXISTS,
                reason="SANDBOX_EXISTS",
                metadata={"pod_sandbox_id": sandbox_id},
            )
        await self._discard(sandbox_id)

    async def _attach(self, sandbox_id: str, hostname: str) -> None:
        inspected = await self._client.inspect(sandbox_id)
        pid = int(inspected["State"]["Pid"]) if inspected else 0
        if pid == 0:
            raise CriError("The pause container ended at once", code=Code.UNAVAILABLE, reason="SANDBOX_ENDED")
        with telemetry.span(telemetry_names.NETWORK_ATTACH):
            await self._network.attach(sandbox_id, pid, hostname=hostname)

    async def _discard(self, sandbox_id: str) -> None:
        try:
            await self._network.detach(sandbox_id)
            await self._client.remove(sandbox_id)
            self._forget(sandbox_id)
        except Exception as error:
            log.warning("Left a broken sandbox behind", pod_sandbox_id=sandbox_id, error=str(error))

    def _write_resolv_conf(self, sandbox_id: str, dns: pb.DNSConfig) -> None:
        if not (dns.servers or dns.searches or dns.options):
            return
        lines = [f"nameserver {server}" for server in dns.servers]
        lines += [f"search {' '.join(dns.searches)}"] if dns.searches else []
        lines += [f"options {' '.join(dns.options)}"] if dns.options else []
        path = self.resolv_conf(sandbox_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def _forget(self, sandbox_id: str) -> None:
        path = self.resolv_conf(sandbox_id)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            path.parent.rmdir()

    async def stop(self, sandbox_id: str) -> None:
        """Kill what runs in a sandbox, take its network away, end its pause container. May be repeated."""
        found = await self._holdings.find(naming.SANDBOX, sandbox_id)
        if found is None:
            return
        full_id = str(found[0]["Id"])
        for item, _ in await self._members(full_id):
            if convert.container_state(item["State"]) == pb.CONTAINER_RUNNING:
                await self._client.kill(item["Id"])
        await self._network.detach(full_id)
        await self._client.kill(full_id)

    async def remove(self, sandbox_id: str) -> tuple[str, ...]:
        """Remove a sandbox with its containers; returns the ids of those. May be repeated."""
        found = await self._holdings.find(naming.SANDBOX, sandbox_id)
        if found is None:
            return ()
        full_id = str(found[0]["Id"])
        members = tuple(str(item["Id"]) for item, _ in await self._members(full_id))
        for member in members:
            await self._client.remove(member)
        await self._network.detach(full_id)
        await self._client.remove(full_id)
        self._forget(full_id)
        return members

    async def _members(self, sandbox_id: str) -> list[Owned]:
        return await self._holdings.list(naming.CONTAINER, f"{SANDBOX_LABEL}={sandbox_id}")

    def addresses(self, sandbox_id: str, record: Record) -> tuple[str, ...]:
        """Return a sandbox's addresses; one on the host's network has none of its own."""
        return () if record.host_network else self._network.addresses(sandbox_id)

    def wired(self, sandbox_id: str, record: Record) -> bool:
        """Tell whether a sandbox has its network."""
        return record.host_network or bool(self._network.addresses(sandbox_id))

    async def prepare(self) -> None:
        """Make the pause image now, so that the first pod need not wait; a failure shows with that pod."""
        try:
            await self._ensure_pause_image()
        except CriError as error:
            log.warning("Could not make the pause image", reason=error.reason, error=error.message)

    async def _ensure_pause_image(self) -> None:
        if self._pause_present:
            return
        async with self._pause_lock:
            if not self._pause_present and await self._client.image(self._host.pause_image) is None:
                await self._import_pause_image()
            self._pause_present = True

    async def _import_pause_image(self) -> None:
        try:
            archive = await asyncio.to_thread(_archive, self._pause_binary)
        except OSError as error:
            raise CriError(
                f"The pause image {self._host.pause_image} is missing, and {self._pause_binary}, from which "
                f"to make it, cannot be read: {error.strerror}; "
                "install Debian's package catatonit or set pause_image",
                code=Code.FAILED_PRECONDITION,
                reason="PAUSE_IMAGE_MISSING",
                metadata={"image": self._host.pause_image},
            ) from error
        changes = [f'ENTRYPOINT ["/{self._pause_binary.name}","-P"]']
        await self._client.import_image(archive, self._host.pause_image, changes)
        log.info("Imported the pause image", image=self._host.pause_image)


def _archive(binary: Path) -> bytes:
    """Pack one program, and its licence where Debian keeps it, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        licence = Path("/usr/share/doc") / binary.name / "copyright"
        for source, target, mode in ((binary, binary.name, 0o755), (licence, "COPYRIGHT", 0o644)):
            if not source.exists() and source is licence:
                continue
            data = source.read_bytes()
            info = tarfile.TarInfo(target)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
