"""Statistics and metrics of containers and pods: who they are from the engine, numbers from the kernel.

Where a container's cgroup is not seen from here, the engine's one-shot stats stand in. A container is
inspected once, for its process id; after that a look costs no call to the engine but the list.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tripod.cri.v1 import api_pb2 as pb

from services.common.clock import Clock, unix_nanoseconds
from services.kubelet.cri import cgroupstats, convert, metrics, naming, statsmessages
from services.kubelet.cri.cgroupfiles import CgroupFiles
from services.kubelet.cri.cgroupstats import Interface, Rates, Usage
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import ContainerNotFoundError, SandboxNotFoundError
from services.kubelet.cri.layersizes import LayerSizes
from services.kubelet.cri.metrics import Disk, Sample
from services.kubelet.cri.naming import Record
from services.kubelet.cri.sandboxes import Holdings, Owned
from services.kubelet.cri.statsmessages import Look

_HOLDING = {"running", "paused", "restarting"}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a running container is found in the kernel."""

    pid: int
    folders: Mapping[str, str]
    own_parent: bool
    started_at: int


@dataclass(frozen=True, slots=True)
class Pod:
    """One sandbox, what it uses, and its containers."""

    owned: Owned
    look: Look
    interfaces: tuple[Interface, ...]
    containers: tuple[tuple[Owned, Look], ...]


class Statistics:
    """Looks at what runs. Belongs to one event loop; files are read in a thread."""

    def __init__(
        self,
        client: DockerClient,
        holdings: Holdings,
        layers: LayerSizes,
        clock: Clock,
        files: CgroupFiles | None = None,
    ) -> None:
        self._client = client
        self._holdings = holdings
        self._layers = layers
        self._clock = clock
        self._files = files or CgroupFiles()
        self._places: dict[str, _Place] = {}
        self._rates = Rates()

    async def container(self, wanted: str) -> pb.ContainerStats:
        """Return one container's; of one that does not run, its writable layer alone. Raises when absent."""
        owned = [o for o in await self._holdings.listing(naming.CONTAINER) if o[0]["Id"].startswith(wanted)]
        if not wanted or len(owned) != 1:
            raise ContainerNotFoundError(wanted)
        [(made, look)] = await self._looked(owned)
        return statsmessages.container(made, look)

    async def containers(self, wanted: pb.ContainerStatsFilter) -> list[pb.ContainerStats]:
        """Return those of running containers that match."""
        owned = [
            (item, record)
            for item, record in await self._holdings.listing(naming.CONTAINER)
            if item["State"] in _HOLDING
            and item["Id"].startswith(wanted.id)
            and record.sandbox_id.startswith(wanted.pod_sandbox_id)
            and matches(record, wanted.label_selector)
        ]
        looks = await self._looked(owned)
        return [statsmessages.container(made, look) for made, look in looks if look.usage is not None]

    async def sandbox(self, wanted: str) -> pb.PodSandboxStats:
        """Return one sandbox's. Raises when absent."""
        pods = await self._pods(pb.PodSandboxStatsFilter(id=wanted), ended=True)
        if not wanted or len(pods) != 1:
            raise SandboxNotFoundError(wanted)
        return self._sandbox(pods[0])

    async def sandboxes(self, wanted: pb.PodSandboxStatsFilter) -> list[pb.PodSandboxStats]:
        """Return those of running sandboxes that match."""
        return [self._sandbox(pod) for pod in await self._pods(wanted)]

    def _sandbox(self, pod: Pod) -> pb.PodSandboxStats:
        return statsmessages.sandbox(pod.owned, pod.look, pod.interfaces, pod.containers)

    async def metrics(self) -> list[pb.PodSandboxMetrics]:
        """Return the metrics of every running sandbox."""
        pods = await self._pods(pb.PodSandboxStatsFilter())
        return await asyncio.to_thread(lambda: [self._metrics(pod) for pod in pods])

    def _metrics(self, pod: Pod) -> pb.PodSandboxMetrics:
        """Build the metrics of a pod. Reads files."""
        (item, record), look = pod.owned, pod.look
        made = pb.PodSandboxMetrics(pod_sandbox_id=item["Id"])
        names = (record.namespace, record.name)
        labels = ("", item["Id"], "", _name(pod.owned), *names)
        if look.usage is not None:
            made.metrics.extend(metrics.of_sample(self._sample(item["Id"], look, look.usage), labels))
        made.metrics.extend(metrics.of_network(pod.interfaces, labels, look.timestamp))
        for owned, part in pod.containers:
            member, own = owned
            if part.usage is not None:
                labels = (own.name, member["Id"], own.image, _name(owned), *names)
                values = metrics.of_sample(self._sample(member["Id"], part, part.usage), labels)
                made.container_metrics.append(
                    pb.ContainerMetrics(container_id=member["Id"], metrics=list(values))
                )
        return made

    def _sample(self, container_id: str, look: Look, usage: Usage) -> Sample:
        place = self._places.get(container_id)
        folders = place.folders if place is not None else {}
        open_files, sockets = self._files.descriptors(folders)
        return Sample(
            timestamp=look.timestamp,
            usage=usage,
            detail=self._files.detail(folders),
            disk=_disk(look),
            started_at=place.started_at if place is not None else 0,
            open_files=open_files,
            sockets=sockets,
        )

    async def _pods(self, wanted: pb.PodSandboxStatsFilter, *, ended: bool = False) -> list[Pod]:
        boxes = [
            (item, record)
            for item, record in await self._holdings.listing(naming.SANDBOX)
            if (ended or item["State"] in _HOLDING)
            and item["Id"].startswith(wanted.id)
            and matches(record, wanted.label_selector)
        ]
        ids = {item["Id"] for item, _ in boxes}
        members = [
            (item, record)
            for item, record in await self._holdings.listing(naming.CONTAINER)
            if item["State"] in _HOLDING and record.sandbox_id in ids
        ]
        looks = await self._looked([*boxes, *members])
        return await asyncio.to_thread(self._assembled, looks)

    def _assembled(self, looks: Sequence[tuple[Owned, Look]]) -> list[Pod]:
        """Put containers to their sandboxes. Reads files."""
        pods = []
        for (item, record), look in looks:
            if record.kind != naming.SANDBOX:
                continue
            parts = tuple(
                part for part in looks if part[0][1].sandbox_id == item["Id"] and part[1].usage is not None
            )
            whole = self._whole(item["Id"], look, [part[1] for part in parts])
            pods.append(Pod((item, record), whole, self._network(item["Id"], record), parts))
        return pods

    def _whole(self, sandbox_id: str, look: Look, parts: Sequence[Look]) -> Look:
        """Return what the pod's own cgroup uses, or the sum of the parts where it has none."""
        if look.usage is None:
            return look
        place = self._places.get(sandbox_id)
        found = self._files.usage(place.folders, parent=True) if place and place.own_parent else None
        members = [look.usage, *(part.usage for part in parts if part.usage is not None)]
        summed = cgroupstats.total(members)
        usage = summed if found is None else replace(found, process_count=summed.process_count)
        nanocores = self._rates.nanocores(f"pod/{sandbox_id}", self._clock.monotonic(), usage.cpu_ns)
        return replace(look, usage=usage, nanocores=nanocores)

    def _network(self, sandbox_id: str, record: Record) -> tuple[Interface, ...]:
        place = self._places.get(sandbox_id)
        return () if place is None or record.host_network else self._files.network(sandbox_id, place.pid)

    async def _looked(self, owned: Sequence[Owned]) -> list[tuple[Owned, Look]]:
        """Look at each; those that do not run, or that ended meanwhile, use nothing."""
        running = [item["Id"] for item, _ in owned if item["State"] in _HOLDING]
        await asyncio.gather(*(self._locate(i) for i in running if i not in self._places))
        usages = await asyncio.to_thread(self._read, running)
        hidden = [i for i in running if usages.get(i) is None]
        told = await asyncio.gather(*(self._ask(i) for i in hidden))
        usages.update(zip(hidden, told, strict=True))
        members = frozenset(item["Id"] for item, record in owned if record.kind == naming.CONTAINER)
        sizes = await self._layers.sizes(members)
        return [((item, record), self._look(item["Id"], usages, sizes)) for item, record in owned]

    def _look(self, container_id: str, usages: Mapping[str, Usage | None], sizes: Mapping[str, int]) -> Look:
        usage, now = usages.get(container_id), self._clock.monotonic()
        return Look(
            timestamp=unix_nanoseconds(self._clock.now()),
            usage=usage,
            nanocores=None if usage is None else self._rates.nanocores(container_id, now, usage.cpu_ns),
            layer_bytes=sizes.get(container_id),
            layer_timestamp=self._layers.timestamp,
            root=self._layers.root,
        )

    async def _locate(self, container_id: str) -> None:
        """Learn a running container's process id, and where its cgroups are."""
        inspected = await self._client.inspect(container_id)
        pid = int(inspected["State"]["Pid"]) if inspected else 0
        if inspected is not None and pid:
            folders = await asyncio.to_thread(self._files.places, container_id, pid)
            own_parent = bool(inspected["HostConfig"].get("CgroupParent"))
            started = convert.nanoseconds(inspected["State"]["StartedAt"])
            self._places[container_id] = _Place(pid, folders, own_parent, started)

    def _read(self, container_ids: Sequence[str]) -> dict[str, Usage | None]:
        found: dict[str, Usage | None] = {}
        for container_id in container_ids:
            place = self._places.get(container_id)
            found[container_id] = self._files.usage(place.folders) if place is not None else None
        return found

    async def _ask(self, container_id: str) -> Usage | None:
        """Ask the engine, for a cgroup that is not seen from here or has gone."""
        self._places.pop(container_id, None)
        stats = await self._client.stats(container_id)
        return None if stats is None else cgroupstats.from_engine(stats)

    def keep(self, container_ids: frozenset[str]) -> None:
        """Forget all but these."""
        self._places = {i: place for i, place in self._places.items() if i in container_ids}
        self._rates.keep({*container_ids, *(f"pod/{i}" for i in container_ids)})


def matches(record: Record, wanted: Mapping[str, str]) -> bool:
    """Tell whether labels match a selector."""
    return all(record.labels.get(name) == value for name, value in wanted.items())


def _disk(look: Look) -> Disk:
    """Look at the file system of the writable layers, where it is seen from here."""
    used = look.layer_bytes or 0
    try:
        found = os.statvfs(look.root)
    except OSError:
        return Disk(used_bytes=used)
    return Disk(used, found.f_blocks * found.f_frsize, found.f_files, found.f_ffree)


def _name(owned: Owned) -> str:
    return str(next(iter(owned[0].get("Names") or ("",)))).lstrip("/")
