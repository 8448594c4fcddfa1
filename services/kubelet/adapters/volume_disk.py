"""The volumes of pods on the node: folders, tmpfs, files, sub paths. Implements `VolumeFiles`.

Everything happens in the engine's space (see `engine_space`), so that what is mounted
there is what is written to. Each step may be repeated; a kill between two of them leaves
what the next pass goes on with, and `release` takes every mount away.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from services.common import failpoints
from services.common.errors import Code
from services.kubelet.adapters import atomic_writer, host_path, mounting, ownership, sub_path
from services.kubelet.adapters.engine_space import EngineSpace
from services.kubelet.core import volumes
from services.kubelet.core.brought import Projected
from services.kubelet.core.model import EmptyDir, HostPath, Pod, PodUid, Volume
from services.kubelet.core.payload import Payload, is_secret
from services.kubelet.errors import KubeletError

T = TypeVar("T")
_MOUNT = failpoints.step("pod.volume.mount")
_WRITE = failpoints.step("pod.volume.write")
_BIND = failpoints.step("pod.volume.bind")
_UNMOUNT = failpoints.step("pod.volume.unmount")
_FILES_MODE, _EMPTY_DIR_MODE, _PRIVATE_MODE = 0o755, 0o777, 0o700
_TOKEN_LIMIT_BYTES = 64 << 10


class VolumeDisk:
    """Works below the state directory, whose path is the same for the engine."""

    def __init__(self, state: Path, space: EngineSpace) -> None:
        self._state = state
        self._space = space

    def why_not(self) -> str:
        """Return why nothing can be mounted; "" when it can."""
        return self._space.why_not

    async def prepare(self, pod: Pod, volume: Volume, node_memory_bytes: int) -> None:
        """Make what a volume needs before anything is in it. Raises `KubeletError`."""
        match volume.source:
            case EmptyDir(memory=True):
                await self._prepare_memory(pod, volume, volume.source, node_memory_bytes)
            case HostPath():
                await self._check_host_path(volume, volume.source)
            case Projected():
                await self._prepare_files(pod, volume, volume.source)
            case _:
                return

    async def _prepare_memory(self, pod: Pod, volume: Volume, source: EmptyDir, memory_bytes: int) -> None:
        if not await self._space.settle():
            raise _failed(volume, f"medium: Memory needs a mount, and {self._space.why_not}")
        size = volumes.memory_size_bytes(pod, source, memory_bytes)
        folder = volumes.empty_dir(self._state, pod.uid, volume.name)
        await self._mount(volume, folder, _EMPTY_DIR_MODE, size)
        group = pod.spec.security.fs_group
        if group is not None:
            await self._act(volume, lambda: ownership.give(folder, group, on_root_mismatch=True))

    async def _prepare_files(self, pod: Pod, volume: Volume, source: Projected) -> None:
        folder = volumes.files_dir(self._state, pod.uid, volume.name, source.plugin)
        if not is_secret(source):
            await self._act(volume, lambda: _make_folder(folder, _FILES_MODE))
        elif await self._space.settle():
            await self._mount(volume, folder, _FILES_MODE, 0)
        else:
            # The parent keeps others out: users in containers must reach the volume itself.
            await self._act(volume, lambda: _make_folder(folder.parent, _PRIVATE_MODE))
            await self._act(volume, lambda: _make_folder(folder, _FILES_MODE))

    async def _mount(self, volume: Volume, folder: Path, mode: int, size_bytes: int) -> None:
        """Mount a tmpfs, unless one is there."""

        def act() -> bool:
            if str(folder) in mounting.mounts_below(folder.parent):
                return False
            _make_folder(folder, mode)
            with _MOUNT:
                mounting.mount_tmpfs(folder, mode=mode, size_bytes=size_bytes)
            return True

        if await self._act(volume, act):
            await _MOUNT.recorded()

    async def _check_host_path(self, volume: Volume, source: HostPath) -> None:
        if not source.type:
            return
        await self._space.settle()
        if not self._space.sees:
            raise _failed(volume, f"its type cannot be checked: {self._space.why_not}")
        await self._act(volume, lambda: host_path.check(source.path, source.type))

    async def write(self, pod: Pod, volume: Volume, payload: Payload, stamp: str) -> bool:
        """Make a volume's files `payload`, all at once; tells whether anything changed."""
        assert isinstance(volume.source, Projected)
        folder = volumes.files_dir(self._state, pod.uid, volume.name, volume.source.plugin)
        group = pod.spec.security.fs_group

        def act() -> bool:
            with _WRITE:
                return atomic_writer.write(folder, payload, stamp, group=group)

        changed = await self._act(volume, act)
        await _WRITE.recorded()
        return changed

    async def read(self, pod: Pod, volume: Volume, path: str) -> str:
        """Return a file of a volume that was written before; "" where there is none."""
        assert isinstance(volume.source, Projected)
        folder = volumes.files_dir(self._state, pod.uid, volume.name, volume.source.plugin)

        def act() -> str:
            try:
                file = atomic_writer.current_folder(folder) / path
                return file.read_text() if file.lstat().st_size <= _TOKEN_LIMIT_BYTES else ""
            except (OSError, ValueError):
                return ""

        return await self._run(act)

    async def written(self, pod: Pod, volume: Volume) -> bool:
        """Tell whether a volume has files, of whatever age."""
        assert isinstance(volume.source, Projected)
        folder = volumes.files_dir(self._state, pod.uid, volume.name, volume.source.plugin)
        return await self._run(lambda: atomic_writer.has_files(folder))

    async def sub_path(self, pod: Pod, volume: Volume, path: str, place: tuple[str, int]) -> str:
        """Return what an engine can mount for a path within a volume. Raises `KubeletError`.

        `place` is the container's name and the number of its mount.
        """
        root = volumes.root_of(self._state, pod.uid, volume)
        if isinstance(volume.source, Projected):
            # Nobody else writes there: what is in it now can be named.
            return await self._act(volume, lambda: _within(root, path))
        if not await self._space.settle():
            raise _failed(volume, f"a sub path needs a mount, and {self._space.why_not}")
        target = volumes.sub_path_place(self._state, pod.uid, (volume.name, *place))

        def act() -> None:
            with _BIND:
                sub_path.bind(root, path, target, make=True)

        await self._act(volume, act)
        await _BIND.recorded()
        return str(target)

    async def usage_bytes(self, uid: PodUid, name: str) -> int:
        """Return how much of the disk an emptyDir takes; across no mount, along no link.

        It may take long, and the disk is the same for us: so it holds nobody up in the engine's space.
        """
        return await asyncio.to_thread(_usage, volumes.empty_dir(self._state, uid, name))

    async def release(self, uid: PodUid) -> None:
        """Take away every mount of ours for a pod, the newest first. May be repeated."""
        folder = volumes.pod_directory(self._state, uid)
        if await self._run(lambda: self._unmount_all(folder)):
            await _UNMOUNT.recorded()
        # A container of ours that was made after a mount has a copy of it.
        await asyncio.to_thread(self._unmount_all, folder)

    def _unmount_all(self, folder: Path) -> bool:
        found = [path for path in mounting.mounts_below(folder) if volumes.is_ours(self._state, path)]
        for path in reversed(found):
            with _UNMOUNT, suppress(PermissionError):
                mounting.unmount(Path(path))
        return bool(found)

    async def mounts(self) -> list[str]:
        """Return what is mounted below the pods' folders, for the engine or for us."""
        root = self._state / "pods"
        try:
            theirs = await self._run(lambda: mounting.mounts_below(root))
        except KubeletError:
            theirs = []
        return sorted({*theirs, *await asyncio.to_thread(mounting.mounts_below, root)})

    async def _run(self, act: Callable[[], T]) -> T:
        await self._space.settle()
        return await self._space.run(act)

    async def _act(self, volume: Volume, act: Callable[[], T]) -> T:
        try:
            return await self._run(act)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _failed(volume, f"{where}{error.strerror or error}") from error


def _failed(volume: Volume, why: str) -> KubeletError:
    return KubeletError(
        f'MountVolume.SetUp failed for volume "{volume.name}" : {why}',
        code=Code.UNAVAILABLE,
        reason="VOLUME_FAILED",
        metadata={"volume": volume.name},
    )


def _make_folder(folder: Path, mode: int) -> None:
    """Make a folder with a mode, whatever the mask; one that is there is left."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)


def _within(root: Path, path: str) -> str:
    found = atomic_writer.current_folder(root) / path
    if not found.exists():
        raise FileNotFoundError(2, "does not exist in the volume", path)
    return str(found)


def _usage(folder: Path) -> int:
    """Sum up what files take, each once, on the folder's own file system."""
    seen: set[int] = set()
    total = 0
    try:
        device = folder.stat().st_dev
    except FileNotFoundError:
        return 0
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            with suppress(OSError):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if found.st_dev == device and found.st_ino not in seen:
                    seen.add(found.st_ino)
                    total += found.st_blocks * 512
        folders[:] = [name for name in folders if _on(device, name, descriptor)]
    return total


def _on(device: int, name: str, folder: int) -> bool:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return found.st_dev == device and stat.S_ISDIR(found.st_mode)
