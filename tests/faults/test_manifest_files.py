"""The manifest directory with everything in it that is no manifest, and objects that two files claim."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.common.clock import SystemClock
from services.kubelet.core.documents import LIMIT_BYTES
from services.kubelet.errors import ManifestError
from services.kubelet.loops.manifests import ManifestDirectory
from services.kubelet.objects.store import Applied, ObjectStore
from tests.lab.store_fixtures import RANGES

pytestmark = pytest.mark.asyncio
LIMIT_SECONDS = 20.0


def pod(name: str, image: str = "app:1") -> str:
    """Write a pod."""
    spec = {"containers": [{"name": "app", "image": image}]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


class Place:
    """A directory, its store and its loop. `told` has every refusal, in order."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self.folder = folder
        self.store = store
        self.told: list[tuple[str, str]] = []
        self.loop = ManifestDirectory(
            folder, store, SystemClock(), on_fault=lambda file, fault: self.told.append((file, fault))
        )

    async def scan(self) -> dict[str, str]:
        """Look once, within a limit; return the refused files by name."""
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.loop.scan()
        return {Path(file).name: fault for file, fault in self.loop.faults().items()}

    def pods(self) -> dict[str, str]:
        """Return the pods' images by name, without those that are stopping."""
        return {p.name: p.spec.containers[0].image for p in self.store.pods() if p.deletion_time is None}

    async def finish(self) -> None:
        """Let the stopping pods be gone."""
        for found in self.store.pods():
            await self.store.finalize(found.uid)


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """Make an empty directory that is followed."""
    folder = tmp_path / "manifests"
    await asyncio.to_thread(folder.mkdir, mode=0o755)
    store = ObjectStore(tmp_path / "db", RANGES, SystemClock(), run_id="run")
    await store.open()
    yield Place(folder, store)
    await store.close()


def _huge(path: Path) -> None:
    path.touch(mode=0o644)
    os.truncate(path, 1 << 40)


def _loop(path: Path) -> None:
    other = path.with_name("other")
    path.symlink_to(other)
    other.symlink_to(path)


def _outside(path: Path) -> None:
    target = path.parent.parent / "outside.yaml"
    target.write_text(pod("outside"))
    path.symlink_to(target)


def _writable(path: Path) -> None:
    path.write_text(pod("anybodys"))
    path.chmod(0o666)


@pytest.mark.fault("F50")
@pytest.mark.parametrize(
    ("lay", "why"),
    [
        pytest.param(os.mkfifo, "is no regular file", id="fifo"),
        pytest.param(Path.mkdir, "is no regular file", id="folder"),
        pytest.param(_huge, f"at most {LIMIT_BYTES} are read", id="a-terabyte"),
        pytest.param(_loop, "is a symbolic link", id="loop-of-links"),
        pytest.param(_outside, "leads out of the manifest directory", id="link-to-outside"),
        pytest.param(lambda p: p.symlink_to("/dev/zero"), "leads out", id="link-to-a-device"),
        pytest.param(lambda p: p.symlink_to("nothing"), "is a link to nothing", id="link-to-nothing"),
        pytest.param(_writable, "can be written by others", id="file-that-anybody-writes"),
        pytest.param(lambda p: p.write_bytes(b"\xff\xfe\0"), "manifest:", id="bytes-that-are-no-text"),
        pytest.param(lambda p: p.write_text(""), "manifest: holds no object", id="empty-file"),
        pytest.param(lambda p: p.write_text(pod("half")[:-20]), "manifest: line 2", id="half-written"),
    ],
)
async def test_what_is_no_manifest_is_refused_and_hinders_nobody(
    place: Place, lay: Callable[[Path], object], why: str
) -> None:
    """It is told once, its neighbours are read, and a pod that its name held before goes on."""
    bad, good = place.folder / "bad.yaml", place.folder / "good.yaml"
    await asyncio.to_thread(bad.write_text, pod("before"))
    await place.scan()
    bad.unlink()
    lay(bad)
    await asyncio.to_thread(good.write_text, pod("good"))
    faults = await place.scan()
    again = await place.scan()

    assert why in faults["bad.yaml"]
    assert again == faults
    assert len(place.told) == 1
    assert place.pods() == {"before": "app:1", "good": "app:1"}


@pytest.mark.netns
@pytest.mark.fault("F50")
async def test_a_device_and_a_file_of_somebody_else_are_refused(place: Place) -> None:
    """Neither is read, whoever laid them there."""
    os.mknod(place.folder / "device.yaml", 0o020600, os.makedev(1, 5))
    await asyncio.to_thread((place.folder / "other.yaml").write_text, pod("other"))
    os.chown(place.folder / "other.yaml", 12345, -1)
    faults = await place.scan()

    assert faults["device.yaml"] == "is no regular file"
    assert "belongs to user 12345" in faults["other.yaml"]
    assert place.pods() == {}


@pytest.mark.fault("F50")
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
async def test_a_directory_that_others_can_write_to_is_not_read(place: Place, mode: int) -> None:
    """Who may write there is root on the node. What it held before goes on (S9)."""
    await asyncio.to_thread((place.folder / "a.yaml").write_text, pod("a"))
    await place.scan()
    place.folder.chmod(mode)
    await asyncio.to_thread((place.folder / "b.yaml").write_text, pod("b"))
    (place.folder / "a.yaml").unlink()
    faults = await place.scan()
    running = place.pods()
    place.folder.chmod(0o755)
    healed = await place.scan()

    assert "can be written by others" in faults["manifests"]
    assert running == {"a": "app:1"}
    assert (healed, place.pods()) == ({}, {"b": "app:1"})


@pytest.mark.fault("F50")
async def test_a_mounted_configmap_is_followed(place: Place) -> None:
    """Its files are links within the directory, and all change by one rename."""
    for version in ("1", "2"):
        (place.folder / f"..{version}").mkdir()
        await asyncio.to_thread((place.folder / f"..{version}/a.yaml").write_text, pod("a", f"app:{version}"))
    (place.folder / "..data").symlink_to("..1")
    (place.folder / "a.yaml").symlink_to("..data/a.yaml")
    first = (await place.scan(), place.pods())
    (place.folder / "..new").symlink_to("..2")
    (place.folder / "..new").rename(place.folder / "..data")
    await place.scan()
    await place.finish()
    second = (await place.scan(), place.pods())

    assert first == ({}, {"a": "app:1"})
    assert second == ({}, {"a": "app:2"})


@pytest.mark.fault("F50")
async def test_what_editors_leave_is_no_manifest(place: Place) -> None:
    """Swap files, backups, locks and drafts are not looked at, not even refused."""
    for name in (
        ".a.yaml.swp",
        "a.yaml~",
        "#a.yaml#",
        ".#a.yaml",
        "4913",
        "a.yaml.bak",
        ".a.yaml",
        "a.yml.tmp",
    ):
        await asyncio.to_thread((place.folder / name).write_text, "{half")
    faults = await place.scan()

    assert (faults, place.pods()) == ({}, {})


@pytest.mark.fault("F50")
async def test_a_change_with_the_old_time_and_size_is_seen(place: Place) -> None:
    """The content counts, not what the file system says of it."""
    file = place.folder / "a.yaml"
    await asyncio.to_thread(file.write_text, pod("a", "app:1"))
    before = file.stat()
    await place.scan()
    await place.scan()
    await asyncio.to_thread(file.write_text, pod("a", "app:2"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    await place.scan()
    await place.finish()
    await place.scan()

    assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert place.pods() == {"a": "app:2"}


class Counting:
    """A store that counts and says that all is as the files say."""

    def __init__(self) -> None:
        self.applied: Counter[str] = Counter()

    async def apply(self, data: bytes, *, source: str, origin: str) -> Sequence[Applied]:
        """Count."""
        self.applied[origin] += 1
        return ()

    async def delete_origin(self, origin: str) -> None:
        """Never called."""
        raise AssertionError(origin)

    def origins(self) -> set[str]:
        """Name none."""
        return set()


@pytest.mark.process
@pytest.mark.fault("F50")
async def test_ten_thousand_files_are_parsed_once(place: Place) -> None:
    """Looking again reads them, and leaves the store alone."""

    def lay() -> None:
        for number in range(10_000):
            (place.folder / f"{number}.json").write_bytes(b"{}")

    await asyncio.to_thread(lay)
    store = Counting()
    loop = ManifestDirectory(place.folder, store, SystemClock())
    async with asyncio.timeout(60):
        await loop.scan()
        await loop.scan()

    assert set(store.applied.values()) == {1}
    assert len(store.applied) == 10_000


@pytest.mark.fault("F49")
async def test_of_two_files_the_first_keeps_the_pod_until_it_is_gone(place: Place) -> None:
    """No flapping however often one looks; the loser is told whose it is, and comes when it is free."""
    for name in ("a", "b"):
        await asyncio.to_thread((place.folder / f"{name}.yaml").write_text, pod("web", f"app:{name}"))
    seen: list[Any] = []
    for _ in range(5):
        faults = await place.scan()
        seen.append((faults, [(p.uid, p.revision) for p in place.store.pods()]))
    (place.folder / "a.yaml").unlink()
    stopping = await place.scan()
    await place.finish()
    taken = await place.scan()

    assert all(look == seen[0] for look in seen)
    assert list(seen[0][0]) == ["b.yaml"]
    assert f"belongs to the manifest {place.folder}/a.yaml" in seen[0][0]["b.yaml"]
    assert list(stopping) == ["b.yaml"]
    assert (taken, place.pods()) == ({}, {"web": "app:b"})
    assert len(place.told) == 1


@pytest.mark.fault("F49")
async def test_a_file_does_not_take_what_a_call_applied(place: Place) -> None:
    """Nor a call what a file holds; each is told where the pod comes from."""
    await place.store.apply(pod("web", "app:call").encode())
    file = place.folder / "a.yaml"
    await asyncio.to_thread(file.write_text, pod("web", "app:file"))
    faults = await place.scan()
    await asyncio.to_thread(file.write_text, pod("other", "app:file"))
    await place.scan()
    with pytest.raises(ManifestError) as caught:
        await place.store.apply(pod("other", "app:call").encode())

    assert "was applied by a call" in faults["a.yaml"]
    assert "belongs to the manifest" in caught.value.violations[0].description
    assert place.pods() == {"web": "app:call", "other": "app:file"}


@pytest.mark.fault("F49")
async def test_a_name_that_comes_back_is_another_pod(place: Place) -> None:
    """The same name gets a new UID, and only once the old one is gone."""
    file = place.folder / "a.yaml"
    await asyncio.to_thread(file.write_text, pod("web"))
    await place.scan()
    (first,) = place.store.pods()
    file.unlink()
    await place.scan()
    await asyncio.to_thread(file.write_text, pod("web"))
    await place.scan()
    (stopping,) = place.store.pods()
    await place.finish()
    await place.scan()
    (second,) = place.store.pods()

    assert (stopping.uid, stopping.deletion_time is None) == (first.uid, False)
    assert (second.uid != first.uid, second.deletion_time) == (True, None)
