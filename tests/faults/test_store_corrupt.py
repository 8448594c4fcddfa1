"""The store's file damaged in every way: it is set aside as it is, and its copy read instead.

`TRIPOD_TEST_EVERY_BYTE=1` flips each byte of the file; otherwise every 37th.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from services.kubelet.core.model import ObjectKey
from services.kubelet.errors import StoreError
from services.kubelet.objects import schema
from services.kubelet.objects.backup import Backup
from services.kubelet.objects.database import Database, Opened
from services.kubelet.objects.store import ObjectStore
from tests.fakes.clock import FakeClock
from tests.lab import store_fixtures
from tests.lab.store_fixtures import RANGES, fixture

LATEST = fixture(schema.VERSION)
STEP = 1 if os.environ.get("TRIPOD_TEST_EVERY_BYTE") else 37
PAGE_BYTES = 4096


def _load(path: Path) -> Opened:
    database = Database(path)
    try:
        return database.open(stamp="now")
    finally:
        database.close()


def _content(opened: Opened) -> tuple[list[str], int]:
    return sorted(map(repr, opened.rows)), opened.revision


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], int]:
    """Return what the healthy file holds."""
    path = tmp_path_factory.mktemp("whole") / "db"
    shutil.copy(LATEST, path)
    opened = _load(path)
    assert (len(opened.rows), opened.lost) == (3, "")
    return _content(opened)


def _is_noticed(path: Path, data: bytes, whole: tuple[list[str], int]) -> bool:
    """Open damaged bytes. Either they still say the same, or they are kept aside and nothing is believed."""
    path.write_bytes(data)
    opened = _load(path)
    if not opened.aside:
        assert _content(opened) == whole, f"believed: {opened}"
        assert opened.lost == ""
        return False
    assert opened.rows == ()
    assert opened.lost
    aside = Path(opened.aside)
    assert hashlib.sha256(aside.read_bytes()).digest() == hashlib.sha256(data).digest()
    for left in path.parent.iterdir():
        left.unlink()
    return True


@pytest.mark.fault("F19")
@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_a_flipped_byte_is_never_believed(tmp_path: Path, flip: int, whole: tuple[list[str], int]) -> None:
    """Wherever it lies: it changes nothing that counts, or the file is set aside."""
    healthy = LATEST.read_bytes()
    noticed = 0
    for place in range(0, len(healthy), STEP):
        damaged = bytearray(healthy)
        damaged[place] ^= flip
        noticed += _is_noticed(tmp_path / "db", bytes(damaged), whole)

    assert noticed > 20


@pytest.mark.fault("F19")
def test_each_value_of_the_objects_is_guarded(tmp_path: Path, whole: tuple[list[str], int]) -> None:
    """A bit of an image's name is no less than one of a page's header."""
    healthy = LATEST.read_bytes()
    place = healthy.index(b"app:1")
    damaged = healthy[:place] + b"app:0" + healthy[place + 5 :]

    assert _is_noticed(tmp_path / "db", damaged, whole)


@pytest.mark.fault("F19")
def test_a_file_cut_at_any_page_is_set_aside(tmp_path: Path, whole: tuple[list[str], int]) -> None:
    """And one cut in the midst of a page, and an empty one."""
    healthy = LATEST.read_bytes()
    cuts = [0, 1, 50, 99, *range(PAGE_BYTES, len(healthy), PAGE_BYTES), len(healthy) - 1]

    assert [cut for cut in cuts if not _is_noticed(tmp_path / "db", healthy[:cut], whole)] == []


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")


def _other_tables(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "somebody's").touch()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _doubled_uid(path: Path) -> None:
    shutil.copy(fixture(1), path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE objects SET uid = 'same'")


def _journal_alone(path: Path) -> None:
    path.rename(path.with_name("db-wal"))


WRECKS: list[tuple[str, Callable[[Path], None], str]] = [
    ("newer-schema", _newer, "a newer Tripod wrote it (schema 99"),
    ("other-tables", _other_tables, "it holds other tables: recipes"),
    ("directory", _directory, "it is no regular file"),
    ("fifo", _fifo, "it is no regular file"),
    ("two-objects-of-one-uid", _doubled_uid, "UNIQUE constraint failed: objects.uid"),
    ("journal-without-file", _journal_alone, "its journal is there, the file is not"),
]
if os.geteuid() == 0:
    WRECKS.append(("wrong-owner", lambda path: os.chown(path, 12345, -1), "it belongs to user 12345"))


@asynccontextmanager
async def opened_store(path: Path) -> AsyncIterator[ObjectStore]:
    """Open a store for a block."""
    store = ObjectStore(path, RANGES, FakeClock(), run_id="run")
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def _prepared(path: Path) -> set[str]:
    """Lay the healthy file there, let it be copied, and return the pods' UIDs."""
    await asyncio.to_thread(shutil.copy, LATEST, path)
    async with opened_store(path) as store:
        return {pod.uid for pod in store.pods()}


@pytest.mark.fault("F19")
@pytest.mark.asyncio
@pytest.mark.parametrize(("wreck", "why"), [pytest.param(wreck, why, id=name) for name, wreck, why in WRECKS])
async def test_a_wreck_is_set_aside_and_its_copy_read(
    tmp_path: Path, wreck: Callable[[Path], None], why: str
) -> None:
    """The same pods with the same UIDs, and the reason said; a second wreck does not hide the first."""
    path = tmp_path / "db"
    uids = await _prepared(path)
    for _ in range(2):
        await asyncio.to_thread(wreck, path)
        async with opened_store(path) as store:
            assert why in store.lost
            assert {pod.uid for pod in store.pods()} == uids

    aside = await asyncio.to_thread(lambda: sorted(p.name for p in tmp_path.glob("db.damaged-*")))
    assert len({name.removesuffix("-wal") for name in aside}) == 2


@pytest.mark.fault("F19")
@pytest.mark.asyncio
async def test_a_lost_journal_is_noticed_by_the_copy(tmp_path: Path) -> None:
    """SQLite takes a damaged journal for a torn one and goes on without it: the copy knows better."""
    path = tmp_path / "db"
    uids = await _prepared(path)
    copy = path.with_name("db.backup.json")
    rows, revision = await asyncio.to_thread(lambda: Backup(copy).read(stamp="x"))
    await asyncio.to_thread(lambda: Backup(copy).write(rows, revision + 3))
    async with opened_store(path) as store:
        assert f"it lost changes: its copy is of revision {revision + 3}" in store.lost
        assert {pod.uid for pod in store.pods()} == uids
        assert store.revision == revision + 3


@pytest.mark.fault("F19")
@pytest.mark.asyncio
async def test_a_rebuild_that_was_killed_begins_again(tmp_path: Path) -> None:
    """A file that a dead rebuild left is not taken for the truth before the runtime was asked."""
    path = tmp_path / "db"
    uids = await _prepared(path)
    await asyncio.to_thread(path.write_bytes, b"garbage" * 100)
    await asyncio.to_thread(lambda: Database(path).open(stamp="killed after this"))
    async with opened_store(path) as store:
        assert store.lost == "an earlier rebuild was not finished"
        assert {pod.uid for pod in store.pods()} == uids
    async with opened_store(path) as store:
        assert store.lost == "an earlier rebuild was not finished"
        await store.settle()
    async with opened_store(path) as store:
        assert store.lost == ""
        assert {pod.uid for pod in store.pods()} == uids


@pytest.mark.fault("F19")
@pytest.mark.asyncio
async def test_a_damaged_copy_is_kept_too(tmp_path: Path) -> None:
    """When both are gone the store is empty and says so; neither file was overwritten."""
    path = tmp_path / "db"
    await _prepared(path)
    await asyncio.to_thread(path.write_bytes, b"garbage" * 100)
    await asyncio.to_thread(path.with_name("db.backup.json").write_bytes, b"\xff nothing")
    async with opened_store(path) as store:
        assert (store.pods(), store.lost) == ([], "file is not a database")

    names = await asyncio.to_thread(lambda: {p.name for p in tmp_path.glob("*damaged*")})
    assert names == {"db.damaged-20260101T000000Z", "db.backup.json.damaged-20260101T000000Z"}


@pytest.mark.fault("F59")
@pytest.mark.parametrize("version", range(1, schema.VERSION + 1))
def test_a_file_of_each_schema_is_read(tmp_path: Path, version: int, whole: tuple[list[str], int]) -> None:
    """Every object is the same after the migration; the old file is kept beside."""
    path = tmp_path / "db"
    shutil.copy(store_fixtures.fixture(version), path)
    opened = _load(path)

    assert (opened.lost, opened.aside) == ("", "")
    assert _content(opened) == whole
    assert (tmp_path / f"db.schema{version}").exists() is (version < schema.VERSION)
    assert _content(_load(path)) == whole


@pytest.mark.fault("F59")
@pytest.mark.asyncio
async def test_an_object_that_is_refused_by_now_is_kept_as_it_is(tmp_path: Path) -> None:
    """Of a version with other rules: told, not shown, and neither a mended file nor the copy drops it."""
    path = tmp_path / "db"
    await _prepared(path)
    database = Database(path)
    opened = await asyncio.to_thread(lambda: database.open(stamp="x"))
    (web,) = [row for row in opened.rows if (row.kind, row.name) == ("Pod", "web")]
    odd = replace(web, body=web.body.replace('"image": "app:1"', '"image": "app:1", "workingDir": "/proc/1"'))
    await asyncio.to_thread(lambda: database.write([odd], [], opened.revision + 1))
    await asyncio.to_thread(database.close)
    async with opened_store(path) as store:
        assert store.lost == "pod/web cannot be read"
        await asyncio.to_thread(path.rename, path.with_name("elsewhere"))
        with pytest.raises(StoreError):
            await store.delete([ObjectKey("Service", "default", "web")], grace_seconds=None)
        await store.maintain()
        assert store.fault() is None
        await store.delete([ObjectKey("Service", "default", "web")], grace_seconds=None)
        await store.maintain()

    kept = await asyncio.to_thread(lambda: _load(path).rows)
    copied, _ = await asyncio.to_thread(lambda: Backup(path.with_name("db.backup.json")).read(stamp="x"))
    assert odd in kept
    assert odd in copied
    assert {(row.kind, row.name) for row in kept} == {("Pod", "web"), ("Pod", "old")}
