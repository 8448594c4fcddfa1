"""What the engine holds of ours, and pod sandboxes made of pause containers."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.common import failpoints, telemetry, telemetry_names
from services.common.errors import Code
from services.common.logs import get_logger
from services.kubelet.cri import convert, engineapi, leftovers, naming, portmap
from services.kubelet.cri.census import Census, Selection
from services.kubelet.cri.convert import Host
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import (
    ContainerNotFoundError,
    CriError,
    EngineRefusedError,
    ListIncompleteError,
    SandboxNotFoundError,
)
from services.kubelet.cri.hostports import HostPorts
from services.kubelet.cri.naming import KIND_LABEL, OWNER_LABEL, SANDBOX_LABEL, UID_LABEL, Record
from services.kubelet.cri.network.details import PodDetails
from services.kubelet.cri.oomlog import OomLog
from services.kubelet.cri.ports import PodNetwork
from services.kubelet.cri.register import Register, digest

log = get_logger(__name__)
Json = Mapping[str, Any]
Owned = tuple[Json, Record]
_CREATE = {
    naming.SANDBOX: failpoints.step("cri.sandbox.create"),
    naming.CONTAINER: failpoints.step("cri.container.create"),
}
_FILES = failpoints.step("cri.sandbox.files")
_START = failpoints.step("cri.sandbox.start")
_MEMBER_STOP = failpoints.step("cri.sandbox.member.stop")
_STOP = failpoints.step("cri.sandbox.stop")
_MEMBER_REMOVE = failpoints.step("cri.sandbox.member.remove")
_FORGET = failpoints.step("cri.sandbox.forget")
_REMOVE = failpoints.step("cri.sandbox.remove")


@dataclass(frozen=True, slots=True)
class Made:
    """How a container was made."""

    record: Record
    tty: bool


class Holdings:
    """Finds our sandboxes and containers at the engine; what is not ours does not exist."""

    def __init__(self, client: DockerClient, owner: str, register: Register) -> None:
        self._client = client
        self._owner = owner
        self._register = register
        self._made: dict[str, Made] = {}
        self._census = Census()
        self._oom = OomLog()

    async def listing(self, kind: str, *, uid: str = "", sandbox_id: str = "") -> list[Owned]:
        """List what is ours of a kind, newest first. Raises `ListIncompleteError`."""
        if self._census.unknown(self._register.ids()):
            await self.claimants()
        wanted = [f"{KIND_LABEL}={kind}"]
        wanted += [f"{UID_LABEL}={uid}"] if uid else []
        wanted += [f"{SANDBOX_LABEL}={sandbox_id}"] if sandbox_id else []
        listed = await self._list(Selection(kind, uid, sandbox_id), *wanted)
        return [(item, record) for item, record in listed if record is not None and record.kind == kind]

    async def claimants(self) -> tuple[list[Owned], list[Json]]:
        """List all that claims to be ours: what is, and what is not. Raises `ListIncompleteError`."""
        listed = await self._list(Selection())
        ours = [(item, record) for item, record in listed if record is not None]
        return ours, [item for item, record in listed if record is None]

    async def _list(self, selection: Selection, *labels: str) -> list[tuple[Json, Record | None]]:
        """List what carries this node's label, and see that nothing of ours was left out."""
        expected = self._census.expected(self._register.ids(), selection)
        listed = await self._client.containers([f"{OWNER_LABEL}={self._owner}", *labels])
        found: list[tuple[Json, Record | None]] = [
            (item, self._recognise(item["Id"], item["Labels"], _name(item))) for item in listed
        ]
        for container_id in expected.difference(item["Id"] for item in listed):
            await self._confirm_gone(container_id, selection)
        return found

    async def _confirm_gone(self, container_id: str, selection: Selection) -> None:
        """Forget one that others removed. Raises when it is there and the list was less than whole."""
        inspected = await self._client.inspect(container_id)
        if inspected is None:
            self._forget(container_id)
            return
        name = str(inspected["Name"]).lstrip("/")
        record = self._recognise(container_id, inspected["Config"]["Labels"], name)
        if record is not None and self._census.expected([container_id], selection):
            raise ListIncompleteError(container_id)

    def _recognise(self, container_id: str, labels: Mapping[str, str] | None, name: str) -> Record | None:
        """Return the record of what is ours; one that a kill kept out of the register is taken in."""
        record = self._register.recognise(container_id, labels or {}, name)
        if record is not None:
            self._note(container_id, record, (labels or {}).get(UID_LABEL, ""))
        return record

    def _note(self, container_id: str, record: Record, uid: str) -> None:
        self._register.add(container_id, record.cgroup_parent)
        self._census.note(container_id, record, uid)

    def _forget(self, container_id: str) -> None:
        parent = self._register.cgroup_parent(container_id) or leftovers.ENGINE_PARENT
        if leftovers.remove_cgroups(container_id, [parent]):
            log.info("Removed cgroups that the engine had left behind", container_id=container_id)
        self._made.pop(container_id, None)
        self._register.remove(container_id)
        self._census.forget(container_id)

    async def find(self, kind: str, wanted: str) -> Owned | None:
        """Inspect one by id, or by a part of its id that names no other."""
        if not wanted:
            return None
        inspected = await self._client.inspect(wanted)
        if inspected is None or not inspected["Id"].startswith(wanted):
            return None
        name = str(inspected["Name"]).lstrip("/")
        record = self._recognise(inspected["Id"], inspected["Config"]["Labels"], name)
        if record is None or record.kind != kind:
            return None
        if self._oom.doubtful(inspected) and await asyncio.to_thread(self._oom.killed, inspected["Id"]):
            inspected["State"]["OOMKilled"] = True
        return inspected, record

    async def attempt(self, record: Record, pod: Record) -> Owned | None:
        """Inspect the container of the same pod, name and attempt, if there is one."""
        for item, other in await self.listing(record.kind, uid=pod.uid):
            if (other.name, other.attempt) == (record.name, record.attempt):
                return await self.find(record.kind, item["Id"])
        return None

    async def create(self, config: Mapping[str, Any], record: Record, pod: Record) -> str:
        """Create a container of ours. Raises `EngineRefusedError` 409 when we have this attempt already.

        A foreign container under our name is left alone: ours gets a name beside it. What the
        engine is too old for is refused, not sent.
        """
        engineapi.check(config, self._client.api_version)
        record = replace(record, cgroup_parent=str(config["HostConfig"].get("CgroupParent") or ""))
        name = naming.name(record, pod)
        if await self._has(record, pod):
            raise EngineRefusedError("create", 409, f"{name} is there under another name")
        for candidate in (name, *(f"{name}_{number}" for number in range(2, 10))):
            labels = self._register.labels(record, pod, candidate, digest(config))
            try:
                async with _CREATE[record.kind]:
                    made = await self._client.create(candidate, {**config, "Labels": labels})
                self._note(made, record, pod.uid)
                self._made[made] = Made(record, tty=bool(config.get("Tty")))
                await _CREATE[record.kind].recorded()
                return made
            except EngineRefusedError as error:
                if error.status != 409 or await self.attempt(record, pod) is not None:
                    raise
                log.warning("Left a foreign container alone that has our name", name=candidate)
        raise CriError(
            f"The engine has foreign containers under the name {name}",
            code=Code.ALREADY_EXISTS,
            reason="NAME_TAKEN",
            metadata={"name": name},
        )

    async def _has(self, record: Record, pod: Record) -> bool:
        """Tell whether this attempt is there, whatever its name: a foreign container may have had ours."""
        if self._census.unknown(self._register.ids()):
            await self.claimants()
        known = self._census.attempt(record, pod.uid)
        return bool(known) and await self.find(record.kind, known) is not None

    async def remove(self, container_id: str) -> None:
        """Remove a container with its anonymous volumes. May be repeated."""
        await self._client.remove(container_id)
        self._forget(container_id)

    async def made(self, container_id: str) -> tuple[str, Made]:
        """Return the full id of a container and how it was made, without asking if we made it ourselves.

        Raises `ContainerNotFoundError`.
        """
        known = self._made.get(container_id)
        if known is not None and known.record.kind == naming.CONTAINER:
            return container_id, known
        inspected, record = await self.container(container_id)
        return str(inspected["Id"]), Made(record, tty=bool(inspected["Config"].get("Tty")))

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


def _name(listed: Json) -> str:
    """Return the name in an entry of the engine's list; others are those of links."""
    return next((name[1:] for name in listed.get("Names") or () if name.count("/") == 1), "")


class Sandboxes:
    """Makes and ends sandboxes."""

    def __init__(
        self,
        client: DockerClient,
        holdings: Holdings,
        network: PodNetwork,
        ports: HostPorts,
        host: Host,
        *,
        pause_binary: Path,
        state_directory: Path,
    ) -> None:
        self._client = client
        self._holdings = holdings
        self._network = network
        self._ports = ports
        self._host = host
        self._pause_binary = pause_binary
        self._state = state_directory
        self._pause_lock = asyncio.Lock()
        self._pause_present = False

    def resolv_conf(self, sandbox_id: str) -> Path:
        """Name the file that holds a sandbox's DNS settings."""
        return self._state / "sandboxes" / sandbox_id / "resolv.conf"

    async def run(self, config: pb.PodSandboxConfig, runtime: str = "") -> str:
        """Make a ready sandbox; what a failure leaves behind is removed. Returns its id."""
        record = convert.sandbox_record(config)
        await self._ensure_pause_image()
        made = convert.sandbox_config(config, record, self._host, runtime=runtime)
        sandbox_id, works = await self._create(made, record)
        if works:
            return sandbox_id
        try:
            async with _FILES:
                self._write_resolv_conf(sandbox_id, config.dns_config)
            await _FILES.recorded()
            async with _START:
                await self._client.start(sandbox_id)
            await _START.recorded()
            if not record.host_network:
                await self.attach(sandbox_id, config.hostname, convert.pod_details(config))
                await self._publish(sandbox_id, record)
        except BaseException:
            await asyncio.shield(self._discard(sandbox_id))
            raise
        return sandbox_id

    async def _create(self, config: Mapping[str, Any], record: Record) -> tuple[str, bool]:
        """Create the pause container; returns its id and whether it works already.

        The same request may come again after its answer was lost: then the sandbox is
        there and works. One that does not was left by an interrupted start, and makes room.
        """
        try:
            return await self._holdings.create(config, record, record), False
        except EngineRefusedError as error:
            if error.status == 404:  # Somebody removed the pause image.
                self._pause_present = False
                await self._ensure_pause_image()
                return await self._holdings.create(config, record, record), False
            found = await self._holdings.attempt(record, record) if error.status == 409 else None
            if found is None:
                raise
        sandbox_id = str(found[0]["Id"])
        if found[0]["State"]["Status"] != "running" or not self.wired(sandbox_id, record):
            await self._discard(sandbox_id)
            return await self._holdings.create(config, record, record), False
        if found[0]["Config"]["Labels"].get(naming.DIGEST_LABEL) == digest(config):
            return sandbox_id, True
        name = f"{record.namespace}/{record.name}"
        raise CriError(
            f"Pod sandbox {name} runs already with another configuration, attempt {record.attempt}",
            code=Code.ALREADY_EXISTS,
            reason="SANDBOX_EXISTS",
            metadata={"pod_sandbox_id": sandbox_id},
        )

    async def attach(self, sandbox_id: str, hostname: str, pod: PodDetails | None = None) -> None:
        """Wire a running sandbox. May be repeated. A process id that is reused wires nobody else."""
        pid = await self._pid(sandbox_id)
        if pid == 0:
            raise CriError("The pause container ended at once", code=Code.UNAVAILABLE, reason="SANDBOX_ENDED")

        async def same() -> bool:
            return _is_in(pid, sandbox_id) or await self._pid(sandbox_id) == pid

        with telemetry.span(telemetry_names.NETWORK_ATTACH):
            await self._network.attach(sandbox_id, pid, hostname=hostname, confirm=same, pod=pod)

    async def restore_ports(self) -> None:
        """Have the host ports of the sandboxes that run published, and no others."""
        while True:
            published = self._ports.publish_count
            owned = await self._holdings.listing(naming.SANDBOX)
            running = [(str(item["Id"]), record) for item, record in owned if item["State"] == "running"]
            wanted = {i: portmap.decode(record.ports) for i, record in running if record.ports}
            if await self._ports.restore(wanted, published=published):
                return

    async def _publish(self, sandbox_id: str, record: Record) -> None:
        if record.ports and not self._ports.restored:
            await self.restore_ports()
        await self._ports.publish(sandbox_id, portmap.decode(record.ports))

    async def _pid(self, sandbox_id: str) -> int:
        inspected = await self._client.inspect(sandbox_id)
        return int(inspected["State"]["Pid"]) if inspected else 0

    async def _discard(self, sandbox_id: str) -> None:
        try:
            await self._ports.withdraw(sandbox_id)
            await self._network.detach(sandbox_id)
        except Exception as error:
            # The network remembers what it owes, and the upkeep pays it once the sandbox is gone.
            log.warning("Left a network to the upkeep", pod_sandbox_id=sandbox_id, error=str(error))
        try:
            await self._holdings.remove(sandbox_id)
            self.forget(sandbox_id)
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

    def forget(self, sandbox_id: str) -> None:
        """Remove the files of a sandbox. May be repeated."""
        path = self.resolv_conf(sandbox_id)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            path.parent.rmdir()

    def keep(self, sandbox_ids: Collection[str]) -> None:
        """Forget the files of all but these: others were removed behind our back."""
        for path in (self._state / "sandboxes").glob("*"):
            if path.name not in sandbox_ids:
                self.forget(path.name)

    async def stop(self, sandbox_id: str) -> None:
        """Kill what runs in a sandbox, take its network away, end its pause container. May be repeated."""
        found = await self._holdings.find(naming.SANDBOX, sandbox_id)
        if found is None:
            return
        full_id = str(found[0]["Id"])
        for item, _ in await self._members(full_id):
            if item["State"] == "paused":
                await self._client.unpause(item["Id"])
            if item["State"] in ("running", "paused", "restarting"):
                async with _MEMBER_STOP:
                    await self._client.kill(item["Id"])
                await _MEMBER_STOP.recorded()
        await self._ports.withdraw(full_id)
        await self._network.detach(full_id)
        if found[0]["State"]["Status"] == "paused":
            await self._client.unpause(full_id)
        async with _STOP:
            await self._client.kill(full_id)
        await _STOP.recorded()

    async def remove(self, sandbox_id: str) -> tuple[str, ...]:
        """Remove a sandbox with its containers; returns the ids of those. May be repeated."""
        found = await self._holdings.find(naming.SANDBOX, sandbox_id)
        if found is None:
            return ()
        full_id = str(found[0]["Id"])
        members = tuple(str(item["Id"]) for item, _ in await self._members(full_id))
        for member in members:
            async with _MEMBER_REMOVE:
                await self._holdings.remove(member)
            await _MEMBER_REMOVE.recorded()
        await self._network.detach(full_id)
        async with _FORGET:
            self.forget(full_id)
        await _FORGET.recorded()
        async with _REMOVE:
            await self._holdings.remove(full_id)
        await _REMOVE.recorded()
        return members

    async def _members(self, sandbox_id: str) -> list[Owned]:
        return await self._holdings.listing(naming.CONTAINER, sandbox_id=sandbox_id)

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


def _is_in(pid: int, sandbox_id: str) -> bool:
    """Tell whether a process is surely in a sandbox's cgroup, whose name has the id with every driver."""
    try:
        return sandbox_id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


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
