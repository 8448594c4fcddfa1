"""What the kubelet mounts for pods, on a real kernel: in memory, by sub path, where the engine is."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.errors import TripodError
from services.kubelet.adapters import mounting
from services.kubelet.adapters.engine_space import EngineSpace
from services.kubelet.adapters.files import DiskFiles
from services.kubelet.adapters.sub_path import bind
from services.kubelet.adapters.volume_disk import VolumeDisk
from services.kubelet.core import volumes
from services.kubelet.core.brought import ObjectFiles, Origin, Projected
from services.kubelet.core.model import EmptyDir, HostPath, Pod, Volume
from services.kubelet.core.payload import FileContent
from tests.builders import a_pod
from tests.lab.pod_files import engine_socket

pytestmark = [pytest.mark.netns, pytest.mark.asyncio]
SECRET = Volume("key", Projected("secret", (ObjectFiles(Origin.SECRET, "key"),)))
MEMORY = Volume("fast", EmptyDir(memory=True, size_limit_bytes=1 << 20))
DISK = Volume("data", EmptyDir())
FILES = {"password": FileContent(b"hunter2", 0o400)}


class Disk:
    """The volumes of one node whose engine is this process."""

    def __init__(self, state: Path, endpoint: str) -> None:
        self.state = state
        self.space = EngineSpace(endpoint)
        self.disk = VolumeDisk(state, self.space)
        self.files = DiskFiles(state, self.disk)
        self.pod: Pod = a_pod(volumes=(SECRET, MEMORY, DISK))

    def kind(self, path: Path) -> str:
        """Return the file system that a path lies on."""
        words = ["stat", "-f", "-c", "%T", str(path)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def entries(folder: Path) -> list[Path]:
    """List a folder."""
    return list(folder.iterdir())


def same(left: Path, right: Path) -> bool:
    """Tell whether two paths lead to one file."""
    return left.samefile(right)


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Disk]:
    """Run on a folder; every mount below it is taken away in the end."""
    async with engine_socket(tmp_path) as endpoint:
        made = Disk(tmp_path / "state", endpoint)
        try:
            yield made
        finally:
            for path in reversed(mounting.mounts_below(tmp_path)):
                mounting.unmount(Path(path))
            made.space.close()


async def test_secrets_lie_in_memory_and_go_with_the_pod(node: Disk) -> None:
    """Nothing of them is on the disk, and nothing stays mounted; each step may come twice."""
    for _ in range(2):
        await node.disk.prepare(node.pod, SECRET, 1 << 30)
        await node.disk.write(node.pod, SECRET, FILES, "2026")
    place = volumes.files_dir(node.state, node.pod.uid, "key", "secret")
    kind, mounts = node.kind(place), await node.disk.mounts()
    content = (place / "password").read_bytes()
    mounting.unmount(place)
    left_on_disk = list(place.iterdir())
    await node.disk.prepare(node.pod, SECRET, 1 << 30)
    await node.files.remove(node.pod.uid)

    assert kind == "tmpfs"
    assert content == b"hunter2"
    assert mounts == [str(place)]
    assert left_on_disk == []
    assert await node.disk.mounts() == []
    assert await node.files.known() == set()


async def test_a_volume_in_memory_is_as_large_as_its_limit(node: Disk) -> None:
    """Any user may write, and no more than fits."""
    await node.disk.prepare(node.pod, MEMORY, 1 << 30)
    place = volumes.empty_dir(node.state, node.pod.uid, "fast")

    def fill() -> None:
        (place / "data").write_bytes(b"x" * (2 << 20))

    assert place.stat().st_mode & 0o7777 == 0o777
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 1 << 20
    with pytest.raises(OSError, match="No space"):
        await asyncio.to_thread(fill)


async def test_where_nothing_can_be_mounted_secrets_are_roots_alone(tmp_path: Path) -> None:
    """And what needs a mount is refused with the reason."""
    disk = VolumeDisk(tmp_path, EngineSpace("tcp://elsewhere:2375"))
    pod = a_pod()
    await disk.prepare(pod, SECRET, 1 << 30)
    await disk.write(pod, SECRET, FILES, "2026")
    place = volumes.files_dir(tmp_path, pod.uid, "key", "secret")
    with pytest.raises(TripodError, match="medium: Memory needs a mount, and the engine is not on this host"):
        await disk.prepare(pod, MEMORY, 1 << 30)
    with pytest.raises(TripodError, match="a sub path needs a mount"):
        await disk.sub_path(pod, DISK, "a", ("app", 0))
    with pytest.raises(TripodError, match="its type cannot be checked"):
        await disk.prepare(pod, Volume("h", HostPath("/etc", "Directory")), 1 << 30)

    assert (place / "password").read_bytes() == b"hunter2"
    assert place.parent.stat().st_mode & 0o777 == 0o700


async def test_an_engine_that_does_not_answer_is_waited_for(tmp_path: Path) -> None:
    """Nothing is put on the disk meanwhile."""
    disk = VolumeDisk(tmp_path, EngineSpace(f"unix://{tmp_path}/none.sock"))
    with pytest.raises(TripodError, match="while it does not answer"):
        await disk.prepare(a_pod(), SECRET, 1 << 30)

    assert entries(tmp_path) == []


async def test_a_sub_path_is_bound_once_and_made_with_the_volumes_mode(node: Disk) -> None:
    """A folder, a file, and a link that stays within; the container's next instance gets the same."""
    await node.files.prepare(node.pod)
    root = volumes.empty_dir(node.state, node.pod.uid, "data")
    (root / "file").write_text("text")
    (root / "link").symlink_to("new/folder")
    made = [await node.disk.sub_path(node.pod, DISK, "new/folder", ("app", 0)) for _ in range(2)]
    file = await node.disk.sub_path(node.pod, DISK, "file", ("app", 1))
    link = await node.disk.sub_path(node.pod, DISK, "link", ("app", 2))
    (root / "new/folder/x").touch()
    mounts = await node.disk.mounts()

    assert made[0] == made[1]
    assert (root / "new").stat().st_mode & 0o777 == 0o777
    assert same(Path(file), root / "file")
    assert (Path(link) / "x").exists()
    assert len(mounts) == 3
    await node.files.remove(node.pod.uid)
    assert await node.disk.mounts() == []


@pytest.mark.parametrize("target", ["/etc", "../../../..", "../data2"])
async def test_a_link_that_leads_out_is_never_followed(node: Disk, target: str) -> None:
    """It is told, and nothing is mounted."""
    await node.files.prepare(node.pod)
    root = volumes.empty_dir(node.state, node.pod.uid, "data")
    (root / "link").symlink_to(target)
    with pytest.raises(TripodError, match="leads out of the volume"):
        await node.disk.sub_path(node.pod, DISK, "link", ("app", 0))

    assert await node.disk.mounts() == []


@pytest.mark.fault("F52")
async def test_a_pod_that_swaps_its_folder_for_a_link_gets_nothing_of_the_hosts(tmp_path: Path) -> None:
    """A folder becomes a link to the host's and back as fast as it can; what is mounted is never that."""
    volume, host = tmp_path / "volume", tmp_path / "host"
    (volume / "real").mkdir(parents=True)
    host.mkdir()
    (volume / "evil").symlink_to(host)
    attacker = multiprocessing.get_context("spawn").Process(
        target=_swap, args=(str(volume / "real"), str(volume / "evil")), daemon=True
    )
    attacker.start()
    bound, refused, place, forbidden = 0, 0, tmp_path / "pods/place", host.stat().st_ino
    try:
        async with asyncio.timeout(60):
            while bound < 300 or refused < 300:
                try:
                    await asyncio.to_thread(bind, volume, "real", place, make=False)
                except OSError:
                    refused += 1
                else:
                    bound += 1
                    assert place.stat().st_ino != forbidden
                    mounting.unmount(place)
    finally:
        attacker.kill()
        await asyncio.to_thread(attacker.join)
        mounting.unmount(place)


def _swap(left: str, right: str) -> None:
    """Exchange two names for ever (RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None)
    while True:
        libc.renameat2(-100, left.encode(), -100, right.encode(), 2)


def _serve_in_own_space(path: str, ready: multiprocessing.synchronize.Event) -> None:
    """Serve a socket from a process with a mount namespace of its own, as an engine elsewhere does."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x20000) == 0
    assert libc.mount(b"none", b"/", None, ctypes.c_ulong(0x4000 | 1 << 18), None) == 0
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    ready.set()
    while True:
        server.accept()[0].close()


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
async def test_volumes_are_mounted_where_the_engine_is(tmp_path: Path) -> None:
    """In its mount namespace, not in ours; files are written there, and all of it is taken away there."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    path = str(tmp_path / "engine.sock")
    engine = context.Process(target=_serve_in_own_space, args=(path, ready), daemon=True)
    engine.start()
    try:
        assert await asyncio.to_thread(ready.wait, 20)
        node = Disk(tmp_path / "state", f"unix://{path}")
        await node.disk.prepare(node.pod, SECRET, 1 << 30)
        await node.disk.write(node.pod, SECRET, FILES, "2026")
        place = volumes.files_dir(node.state, node.pod.uid, "key", "secret")
        there = Path(f"/proc/{engine.pid}/root{place}")
        content, ours = (there / "password").read_bytes(), list(place.iterdir())
        mounts = await node.disk.mounts()
        await node.files.remove(node.pod.uid)
        after = await node.disk.mounts()
        node.space.close()
    finally:
        engine.kill()
        await asyncio.to_thread(engine.join)

    assert content == b"hunter2"
    assert ours == []
    assert mounts == [str(place)]
    assert after == []
    assert not place.exists()


@pytest.mark.parametrize(
    ("kind", "name", "ok"),
    [
        ("", "none", True),
        ("Directory", "folder", True),
        ("Directory", "file", False),
        ("Directory", "none", False),
        ("DirectoryOrCreate", "new/folder", True),
        ("DirectoryOrCreate", "file", False),
        ("File", "file", True),
        ("File", "folder", False),
        ("FileOrCreate", "fresh", True),
        ("FileOrCreate", "new2/file", False),
        ("Socket", "engine.sock", True),
        ("Socket", "file", False),
        ("CharDevice", "/dev/null", True),
        ("CharDevice", "file", False),
        ("BlockDevice", "file", False),
    ],
)
async def test_a_path_of_the_host_is_what_its_type_says(node: Disk, kind: str, name: str, ok: bool) -> None:
    """Or is made; or the pod is told what it is not."""
    base = node.state.parent
    (base / "folder").mkdir()
    (base / "file").touch()
    path = base / name
    volume = Volume("host", HostPath(str(path), kind))
    if ok:
        await node.disk.prepare(node.pod, volume, 1 << 30)
    else:
        with pytest.raises(TripodError, match=r"is not|does not exist|No such file"):
            await node.disk.prepare(node.pod, volume, 1 << 30)

    if name == "new/folder":
        assert path.stat().st_mode & 0o777 == 0o755
        assert path.parent.stat().st_mode & 0o777 == 0o755
    if name == "fresh":
        assert path.stat().st_mode & 0o777 == 0o644


async def test_the_size_of_a_volume_is_what_its_files_take(node: Disk) -> None:
    """Each once, links not followed."""
    await node.files.prepare(node.pod)
    root = volumes.empty_dir(node.state, node.pod.uid, "data")
    (root / "below").mkdir()
    (root / "below/a").write_bytes(b"x" * (1 << 20))
    (root / "b").hardlink_to(root / "below/a")
    (root / "c").symlink_to("/proc/kcore")

    used = await node.disk.usage_bytes(node.pod.uid, "data")

    assert 1 << 20 <= used < (1 << 20) + (64 << 10)
    assert await node.disk.usage_bytes(node.pod.uid, "none") == 0
