"""Volumes and objects of pods, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.common.errors import Code
from services.kubelet.core.brought import Origin
from services.kubelet.core.model import ConfigMap, ObjectKey, Pod, PodUid, Secret, Service, Volume
from services.kubelet.core.payload import Payload
from services.kubelet.core.resolve import Surroundings
from services.kubelet.errors import KubeletError
from services.kubelet.loops.podvolumes import PodVolumes
from services.kubelet.loops.pulling import Puller
from services.kubelet.ports import EventSink, Runtime, Token, TokenRequest
from tests.fakes.clock import FakeClock


def refused(message: str, reason: str = "VOLUME_FAILED") -> KubeletError:
    """Make the error of a refused call."""
    return KubeletError(message, code=Code.UNAVAILABLE, reason=reason)


class FakeVolumeFiles:
    """Implements the kubelet's `VolumeFiles`. `broken` says why nothing can be made."""

    def __init__(self) -> None:
        self.files: dict[tuple[PodUid, str], Payload] = {}
        self.prepared: list[str] = []
        self.writes = 0
        self.sub_paths: dict[str, str] = {}
        self.broken = ""

    async def prepare(self, pod: Pod, volume: Volume, node_memory_bytes: int) -> None:
        """Note the volume."""
        if self.broken:
            raise refused(self.broken)
        self.prepared.append(volume.name)

    async def write(self, pod: Pod, volume: Volume, payload: Payload, stamp: str) -> bool:
        """Keep the files; tell whether they differ."""
        changed = self.files.get((pod.uid, volume.name)) != payload
        self.writes += changed
        self.files[pod.uid, volume.name] = payload
        return changed

    async def read(self, pod: Pod, volume: Volume, path: str) -> str:
        """Return a kept file."""
        found = self.files.get((pod.uid, volume.name), {}).get(path)
        return found.data.decode() if found else ""

    async def written(self, pod: Pod, volume: Volume) -> bool:
        """Tell whether files are kept."""
        return (pod.uid, volume.name) in self.files

    async def sub_path(self, pod: Pod, volume: Volume, path: str, place: tuple[str, int]) -> str:
        """Name a place."""
        self.sub_paths[path] = f"/bound/{volume.name}/{place[0]}/{place[1]}"
        return self.sub_paths[path]


class FakeObjects:
    """Implements the kubelet's `PodObjects`. `down` says why nothing can be told."""

    def __init__(self, *objects: ConfigMap | Secret, services: Sequence[Service] = ()) -> None:
        self._found = {(value.key.kind, value.namespace, value.name): value for value in objects}
        self._services = services
        self._changes: asyncio.Queue[ObjectKey] = asyncio.Queue()
        self.tokens: list[TokenRequest] = []
        self.token_text = "token-{number}"
        self.down = ""
        self.kept = ""

    def put(self, value: ConfigMap | Secret) -> None:
        """Set an object, and tell of it."""
        self._found[value.key.kind, value.namespace, value.name] = value
        self._changes.put_nowait(value.key)

    def drop(self, key: ObjectKey) -> None:
        """Remove an object, and tell of it."""
        self._found.pop((key.kind, key.namespace, key.name), None)
        self._changes.put_nowait(key)

    def _get(self, origin: Origin, namespace: str, name: str) -> ConfigMap | Secret | None:
        if self.down:
            raise refused(self.down, "API_UNAVAILABLE")
        return self._found.get((origin.value, namespace, name))

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """Return a ConfigMap."""
        found = self._get(Origin.CONFIG_MAP, namespace, name)
        return found if isinstance(found, ConfigMap) else None

    async def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret."""
        found = self._get(Origin.SECRET, namespace, name)
        return found if isinstance(found, Secret) else None

    async def services(self, namespace: str) -> Sequence[Service]:
        """Return services."""
        return [service for service in self._services if service.namespace == namespace]

    async def token(self, request: TokenRequest) -> Token:
        """Make up a token."""
        if self.down:
            raise refused(self.down, "API_UNAVAILABLE")
        self.tokens.append(request)
        text = self.token_text.format(number=len(self.tokens))
        return Token(text, datetime(2100, 1, 1, tzinfo=UTC))

    async def kept_token(self, request: TokenRequest) -> str:
        """Return what a test says was kept."""
        return self.kept

    async def root_certificates(self) -> str:
        """Return none."""
        return ""

    async def object_changes(self) -> AsyncIterator[ObjectKey]:
        """Yield what a test did."""
        while True:
            yield await self._changes.get()


def what_pods_bring(
    runtime: Runtime,
    events: EventSink,
    objects: FakeObjects | None = None,
    files: FakeVolumeFiles | None = None,
    clock: FakeClock | None = None,
) -> tuple[PodVolumes, Puller]:
    """Make what an actor needs for volumes and pulls, on fakes."""
    brought = objects or FakeObjects()
    volumes = PodVolumes(
        brought,
        files or FakeVolumeFiles(),
        events,
        clock or FakeClock(),
        state_directory=Path("/state"),
        around=lambda addresses: Surroundings("node-1", ("192.0.2.1",), addresses, 2000, 1 << 30, 1 << 40),
        recursive_read_only=runtime.recursive_read_only,
    )
    return volumes, Puller(runtime, brought, events, lambda pod: ())
