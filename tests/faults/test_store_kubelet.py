"""The kubelet's process while its state directory fails: running pods stay, and it says what is wrong."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from services.common.errors import RemoteError
from services.common.grpcclient import call, stream
from tests.fakes.cri_server import FakeCri
from tests.lab import strace
from tests.matrix.kubelet import IMAGE, World, pod, world
from tests.matrix.process import until

# Whole processes, and most as root: with the tests that `make check` leaves out.
pytestmark = [pytest.mark.asyncio, pytest.mark.netns]


@asynccontextmanager
async def running(folder: Path, *names: str) -> AsyncIterator[World]:
    """Run a kubelet with pods that are ready."""
    fake = FakeCri(IMAGE)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    async with world(folder, fake) as made:
        await made.service.start()
        await made.apply(*map(pod, names))
        for name in names:
            await made.ready(name)
        yield made
        assert fake.violations == []


async def refusal(made: World, name: str) -> RemoteError:
    """Apply a pod; return how it was refused."""
    stub = object_grpc.ObjectServiceStub(made.channel)
    request = object_pb.ApplyObjectsRequest(manifest=json.dumps(pod(name)).encode())
    with pytest.raises(RemoteError) as caught:
        await call(stub.ApplyObjects, request, deadline_seconds=10)
    return caught.value


async def node_ready(made: World) -> tuple[bool, str]:
    """Return the node's condition Ready and its message."""
    stub = node_grpc.NodeServiceStub(made.channel)
    answer = await made.ask(lambda: call(stub.GetNode, node_pb.GetNodeRequest(), deadline_seconds=5))
    (found,) = [c for c in answer.node.conditions if c.type == "Ready"]
    return found.status == pod_pb.CONDITION_STATUS_TRUE, found.message


async def tells(made: World, words: str) -> None:
    """Wait until the node says why it is not ready; with no words, until it is ready."""

    async def holds() -> bool:
        ready, message = await node_ready(made)
        return ready if not words else not ready and words in message

    await until(holds, f"the node tells {words!r}", 25.0)


async def applies(made: World, name: str) -> None:
    """Wait until a pod is taken again, and ready."""

    async def holds() -> bool:
        try:
            stub = object_grpc.ObjectServiceStub(made.channel)
            request = object_pb.ApplyObjectsRequest(manifest=json.dumps(pod(name)).encode())
            await call(stub.ApplyObjects, request, deadline_seconds=10)
        except RemoteError as error:
            if error.reason not in ("STORE_FULL", "STORE_UNUSABLE"):
                raise
            return False
        return True

    await until(holds, f"{name} is taken")
    made.acknowledged.add(name)
    await made.ready(name)


async def events(made: World, reason: str) -> list[str]:
    """Return the remembered events of a reason."""
    stub = pod_grpc.PodServiceStub(made.channel)
    async with stream(stub.WatchEvents, pod_pb.WatchEventsRequest(only_remembered=True)) as answers:
        found = [answer.event async for answer in answers if answer.HasField("event")]
    return [event.message for event in found if event.reason == reason]


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a file system of a size on a folder for a block."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


@pytest.mark.fault("F17")
async def test_a_full_disk_refuses_new_pods_and_lets_old_ones_go(tmp_path: Path) -> None:
    """Running pods stay, also across a restart; deletes live on the reserve; space again is enough."""
    with small_disk(tmp_path / "state", "8m"):
        async with running(tmp_path, "stays", "goes", "follows") as made:
            before = {c.id for c, _ in made.fake.containers.values()}
            await asyncio.to_thread(fill, tmp_path / "state/filler")
            first = await refusal(made, "late")
            await made.delete("goes")
            await made.gone("goes")
            await tells(made, "The disk of the object store is full")
            await made.service.kill()
            await made.service.start()
            await made.ready("stays")
            again = await refusal(made, "late")
            await made.delete("follows")
            await made.gone("follows")
            assert (first.reason, again.reason) == ("STORE_FULL", "STORE_FULL")
            assert "Free some space" in first.message

            await asyncio.to_thread((tmp_path / "state/filler").unlink)
            lives = made.service.lives
            await applies(made, "late")
            await tells(made, "")
            assert made.service.lives == lives
            stayed = {c.id for c in made.fake.running((await made.pods())["stays"].uid)}
            assert len(stayed & before) == 2


@asynccontextmanager
async def failing(made: World, call: str, error: str) -> AsyncIterator[None]:
    """Let every such call on the store's files fail for a block, from outside."""
    database = made.folder / "state/kubelet.db"
    paths = [word for suffix in ("", "-wal") for word in ("-P", f"{database}{suffix}")]
    tracer = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-p", str(made.service.pid), *paths),
        *("-e", f"trace={call}", "-e", f"inject={call}:error={error}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert tracer.stderr is not None
    assert b"attached" in await asyncio.wait_for(tracer.stderr.readline(), 20)
    drain = asyncio.ensure_future(tracer.stderr.read())  # noqa: TID251  # awaited below
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        await tracer.wait()
        await drain


@pytest.mark.fault("F18")
@pytest.mark.skipif(not strace.AVAILABLE, reason="needs strace: apt-get install strace")
async def test_a_disk_that_fails_is_told_and_mended_without_a_restart(tmp_path: Path) -> None:
    """While fsync fails nothing new is taken and pods run on; afterwards all that was taken is there."""
    async with running(tmp_path, "stays") as made:
        before = made.fake.running((await made.pods())["stays"].uid)
        async with failing(made, "fdatasync", "EIO"):
            refused = [(await refusal(made, f"late{number}")).reason for number in range(3)]
            await tells(made, "The object store cannot be used: disk I/O error")
            assert await made.ready("stays")
        await applies(made, "after")
        await made.service.kill()
        await made.service.start()
        await made.ready("after")

        assert refused == ["STORE_UNUSABLE"] * 3
        assert set(await made.pods()) == {"stays", "after"}
        assert made.fake.running((await made.pods())["stays"].uid) == before
        assert made.service.lives == 2


@pytest.mark.fault("F19")
@pytest.mark.parametrize("copy", [True, False], ids=["with-its-copy", "from-the-runtime-alone"])
async def test_a_destroyed_store_keeps_every_running_pod(tmp_path: Path, copy: bool) -> None:
    """The same containers and UIDs, the manifest's pod still belongs to its file, and it is said why."""
    async with running(tmp_path, "web", "db") as made:
        manifests = tmp_path / "state/manifests"
        await asyncio.to_thread((manifests / "filed.json").write_text, json.dumps(pod("filed")))
        await made.ready("filed")
        backup = tmp_path / "state/kubelet.db.backup.json"
        await until(lambda: _copied(backup, "filed"), "the copy has all")
        uids = {name: found.uid for name, found in (await made.pods()).items()}
        before = {key: c.SerializeToString() for key, (c, _) in made.fake.containers.items()}
        await made.service.kill()
        _destroy(tmp_path / "state", copy=copy)
        await made.service.start()
        for name in uids:
            await made.ready(name)

        assert {name: found.uid for name, found in (await made.pods()).items()} == uids
        assert {key: c.SerializeToString() for key, (c, _) in made.fake.containers.items()} == before
        assert "file is not a database" in made.service.log.read_text()
        assert len(list((tmp_path / "state").glob("kubelet.db.damaged-*"))) == 1
        restored = await events(made, "Restored")
        assert len(restored) == (0 if copy else 3)
        assert all("the object store was lost (file is not a database)" in text for text in restored)

        await asyncio.to_thread((manifests / "filed.json").unlink)
        await made.gone("filed")
        await made.service.terminate()
        assert not _rebuilding(tmp_path / "state/kubelet.db")


async def _copied(backup: Path, name: str) -> bool:
    try:
        return f'"name": "{name}"' in await asyncio.to_thread(backup.read_text)
    except FileNotFoundError:
        return False


def _destroy(state: Path, *, copy: bool) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{state}/kubelet.db{suffix}").unlink(missing_ok=True)
    (state / "kubelet.db").write_bytes(b"\0garbage" * 512)
    if not copy:
        (state / "kubelet.db.backup.json").unlink()


def _rebuilding(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT count(*) FROM meta WHERE name = 'rebuilding'").fetchone()
    return bool(found[0])


@pytest.mark.fault("F20")
async def test_a_state_directory_that_went_away_is_made_anew(tmp_path: Path) -> None:
    """Renamed under a running kubelet: the first change is refused, the next finds all that was taken."""
    async with running(tmp_path, "stays") as made:
        before = made.fake.running((await made.pods())["stays"].uid)
        await asyncio.to_thread(os.rename, tmp_path / "state", tmp_path / "elsewhere")
        refused = await refusal(made, "late")
        await applies(made, "late")
        await made.service.kill()
        await made.service.start()
        await made.ready("late")

        assert refused.reason == "STORE_UNUSABLE"
        assert made.fake.running((await made.ready("stays")).uid) == before


@pytest.mark.fault("F5")
async def test_a_copy_of_a_frozen_node_replays_to_the_same_end(tmp_path: Path) -> None:
    """The state directory as it was at one instant starts again: pods, UIDs and statuses are the same."""
    async with running(tmp_path / "first", "web", "db") as made:
        uid = (await made.pods())["web"].uid
        made.fake.crash(uid, "app", 3)
        await made.ready("web", restarts=1)
        os.kill(made.service.pid, signal.SIGSTOP)
        copied = tmp_path / "second/state"
        await asyncio.to_thread(shutil.copytree, tmp_path / "first/state", copied)
        os.kill(made.service.pid, signal.SIGCONT)
        wanted = await made.pods()
        frozen = FakeCri(IMAGE)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
        frozen.copy_from(made.fake)
    async with world(tmp_path / "second", frozen) as again:
        await again.service.start()
        again.acknowledged |= {"web", "db"}
        await again.ready("web", restarts=1)
        await again.ready("db")
        found = await again.pods()

        assert {n: _told(p) for n, p in found.items()} == {n: _told(p) for n, p in wanted.items()}
        assert frozen.violations == []
        assert frozen.history == []


def _told(found: pod_pb.Pod) -> tuple[object, ...]:
    """Return what a status says that must survive."""
    containers = [
        (c.name, c.container_id, c.restart_count, c.ready, c.last_termination_state.exit_code)
        for c in found.containers
    ]
    return (found.uid, found.phase, found.ready, list(found.pod_ips), containers)
