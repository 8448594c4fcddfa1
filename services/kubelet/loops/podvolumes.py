"""What a pod brings in, fetched and put where its containers find it: variables, files, tokens, sub paths.

`make` must have passed before a container starts; `refresh` keeps the files of a running
pod up to date, and disturbs nothing where it cannot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.kubelet.core import env, resolve, token, volumes
from services.kubelet.core.brought import ImageSource, Origin, Projected, TokenFile
from services.kubelet.core.manifest_files import local_path_fault
from services.kubelet.core.model import Container, ObjectKey, Pod, PodUid, Volume, VolumeMount
from services.kubelet.core.payload import Payload, payload, token_files
from services.kubelet.core.resolve import Environment, Found, MissingError, Named, Surroundings
from services.kubelet.core.volumes import Mount
from services.kubelet.errors import KubeletError
from services.kubelet.ports import EventSink, PodObjects, TokenRequest, VolumeFiles

# A token that cannot be renewed is asked for again so much later, by each pod that has one.
_TOKEN_RETRY_SECONDS = 60.0
SurroundingsOf = Callable[[tuple[str, ...]], Surroundings]


@dataclass(slots=True)
class _Kept:
    """What is remembered of a pod: the tokens it has, and the files that were written last."""

    tokens: dict[tuple[str, TokenFile], tuple[str, float]] = field(default_factory=dict, repr=False)
    written: dict[str, Payload] = field(default_factory=dict, repr=False)


class PodVolumes:
    """Serves all pods. `around` tells what the node knows, given the addresses of a pod."""

    def __init__(
        self,
        objects: PodObjects,
        files: VolumeFiles,
        events: EventSink,
        clock: Clock,
        *,
        state_directory: Path,
        around: SurroundingsOf,
        recursive_read_only: Callable[[], Awaitable[bool]],
    ) -> None:
        self._objects = objects
        self._files = files
        self._events = events
        self._clock = clock
        self._state = state_directory
        self._around = around
        self._recursive_read_only = recursive_read_only
        self._kept: dict[PodUid, _Kept] = {}

    async def make(self, pod: Pod) -> None:
        """Make every volume of a pod. Raises `TripodError`, which says what is missing.

        A volume that has files keeps them when it cannot be brought up to date now.
        """
        for volume in pod.spec.volumes:
            await self._files.prepare(pod, volume, self._around(()).memory_bytes)
        try:
            await self._write(pod)
        except TripodError as error:
            for volume in _written_by_us(pod):
                if not await self._files.written(pod, volume):
                    raise
            self._events.emit(pod, "FailedMount", error.message, warning=True)

    async def refresh(self, pod: Pod) -> float | None:
        """Bring the files of a running pod up to date; returns in how many seconds a token is due.

        Where that fails, the files stay as they are, and the pod is told.
        """
        if not _written_by_us(pod):
            return None
        try:
            await self._write(pod)
        except TripodError as error:
            self._events.emit(pod, "FailedMount", error.message, warning=True)
        due = [when for _, when in self._of(pod).tokens.values()]
        return max(1.0, min(due) - self._now()) if due else None

    async def _write(self, pod: Pod) -> None:
        found = await self._fetch(pod, resolve.needed_by_volumes(pod))
        kept = self._of(pod)
        for volume in _written_by_us(pod):
            assert isinstance(volume.source, Projected)
            tokens = {f: await self._token(pod, volume, f) for f in token_files(volume.source)}
            try:
                made = payload(pod, volume.source, found, self._around(()), tokens)
            except MissingError as error:
                raise _failed(volume, str(error)) from error
            if kept.written.get(volume.name) != made:
                await self._files.write(pod, volume, made, self._stamp())
                kept.written[volume.name] = made

    def _stamp(self) -> str:
        return self._clock.now().strftime("%Y_%m_%d_%H_%M_%S")

    def _now(self) -> float:
        return self._clock.now().timestamp()

    async def _fetch(self, pod: Pod, names: Collection[Named]) -> Found:
        """Return the objects that are there."""
        found = {}
        for origin, name in sorted(names, key=lambda named: (named[0].value, named[1])):
            get = self._objects.secret if origin is Origin.SECRET else self._objects.config_map
            if (value := await get(pod.namespace, name)) is not None:
                found[origin, name] = value
        return Found(found)

    async def _token(self, pod: Pod, volume: Volume, wanted: TokenFile) -> str:
        """Return a token that is not due yet: the one there is, also of a run before, or a new one."""
        kept = self._of(pod).tokens
        text, due = kept.get((volume.name, wanted), ("", 0.0))
        if text and self._now() < due:
            return text
        if not text:
            text = await self._files.read(pod, volume, wanted.path)
            life = token.read_life(text)
            if life is not None and token.is_for(life, wanted.audience):
                due = token.renew_at(life, _jitter(pod))
            if self._now() < due:
                kept[volume.name, wanted] = text, due
                return text
        return await self._new_token(pod, volume, wanted, text)

    async def _new_token(self, pod: Pod, volume: Volume, wanted: TokenFile, old: str) -> str:
        request = TokenRequest(pod, pod.spec.service_account_name, wanted.audience, wanted.expiration_seconds)
        try:
            fresh = await self._objects.token(request)
        except TripodError as error:
            why = _failed(volume, f"failed to fetch token: {error.message}")
            text = old or await self._objects.kept_token(request)
            if not text:
                raise why from error
            self._of(pod).tokens[volume.name, wanted] = text, self._now() + _TOKEN_RETRY_SECONDS
            life = token.read_life(text)
            if life is None or life.expires <= self._now():
                # It is good for nothing, and yet no reason to keep a pod from running.
                self._events.emit(pod, "FailedMount", why.message, warning=True)
            return text
        told = token.read_life(fresh.text)
        life = told or token.Life(self._now(), fresh.expires.timestamp())
        self._of(pod).tokens[volume.name, wanted] = fresh.text, token.renew_at(life, _jitter(pod))
        return fresh.text

    async def environment(self, pod: Pod, container: Container, addresses: tuple[str, ...]) -> Environment:
        """Return a container's variables. Raises `MissingError`, `TooLongError`, `TripodError`."""
        found = await self._fetch(pod, resolve.needed_by(container))
        services = list(await self._objects.services(pod.namespace))
        api_namespace, api_name = resolve.API_SERVICE
        if pod.namespace != api_namespace:
            services += [s for s in await self._objects.services(api_namespace) if s.name == api_name]
        made = resolve.environment(pod, container, Found(found.objects, services), self._around(addresses))
        for source, names in made.skipped.items():
            what = "were skipped since they are considered invalid environment variable names."
            message = f"Keys [{', '.join(names)}] from the EnvFrom {source} {what}"
            self._events.emit(
                pod, "InvalidEnvironmentVariableNames", message, container=container.name, warning=True
            )
        return made

    async def mounts(self, pod: Pod, container: Container, values: Mapping[str, str]) -> list[Mount]:
        """Return a container's mounts; `values` are its variables. Raises `TripodError`."""
        by_name = {volume.name: volume for volume in pod.spec.volumes}
        found = []
        for number, mount in enumerate(container.volume_mounts):
            place = (container.name, number)
            found.append(await self._mount(pod, mount, by_name[mount.name], values, place))
        return volumes.with_hosts(self._state, pod.uid, found)

    async def _mount(
        self, pod: Pod, mount: VolumeMount, volume: Volume, values: Mapping[str, str], place: tuple[str, int]
    ) -> Mount:
        path = _expanded(mount, volume, values) if mount.sub_path_is_expression else mount.sub_path
        if isinstance(volume.source, ImageSource):
            image = volume.source.reference
            return Mount("", mount.mount_path, read_only=True, image=image, image_sub_path=path)
        host_path = str(volumes.root_of(self._state, pod.uid, volume))
        if path:
            host_path = await self._files.sub_path(pod, volume, path, place)
        return Mount(
            host_path,
            mount.mount_path,
            # Files that we write are ours to change alone (CVE-2017-1002102).
            read_only=mount.read_only or isinstance(volume.source, Projected),
            propagation=mount.propagation,
            recursive_read_only=await self._is_recursive(mount),
        )

    async def _is_recursive(self, mount: VolumeMount) -> bool:
        wanted = mount.recursive_read_only
        return wanted == "Enabled" or (wanted == "IfPossible" and await self._recursive_read_only())

    def uses(self, pod: Pod, key: ObjectKey) -> bool:
        """Tell whether a pod brings in an object."""
        names = set(resolve.needed_by_volumes(pod))
        for container in pod.spec.every:
            names |= resolve.needed_by(container)
        return key.namespace == pod.namespace and (key.kind, key.name) in {(o.value, n) for o, n in names}

    def forget(self, uid: PodUid) -> None:
        """Forget a pod that is gone."""
        self._kept.pop(uid, None)

    def _of(self, pod: Pod) -> _Kept:
        return self._kept.setdefault(pod.uid, _Kept())


def _written_by_us(pod: Pod) -> list[Volume]:
    return [volume for volume in pod.spec.volumes if isinstance(volume.source, Projected)]


def _jitter(pod: Pod) -> float:
    """Return a share from 0 to 1 that is the pod's own: the same after a restart."""
    return sha256(pod.uid.encode()).digest()[0] / 255


def _expanded(mount: VolumeMount, volume: Volume, values: Mapping[str, str]) -> str:
    """Replace the references of a sub path, which must leave a path within the volume."""
    path = env.expand(mount.sub_path, values)
    short = "/".join(part for part in path.split("/") if part not in ("", "."))
    wrong = "is absolute" if path.startswith("/") else local_path_fault(short) if short else None
    if wrong or not env.all_known(mount.sub_path, values):
        # The value may be a secret's: it is not told.
        raise _failed(
            volume, f"subPathExpr {mount.sub_path!r} {wrong or 'names a variable that is not there'}"
        )
    return short


def _failed(volume: Volume, why: str) -> KubeletError:
    return KubeletError(
        f'MountVolume.SetUp failed for volume "{volume.name}" : {why}',
        code=Code.FAILED_PRECONDITION,
        reason="VOLUME_FAILED",
        metadata={"volume": volume.name},
    )
