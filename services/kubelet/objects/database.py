"""The store's file: SQLite, one row for each object, a transaction for each change.

`synchronous=FULL` in WAL mode: what was answered survives a kill and a power cut.
Every call runs in one thread of its own.

What can go wrong with a file has three answers. One that cannot be trusted (torn,
not ours, of a newer Tripod, empty where rows should be) is set aside, never
overwritten: `open` says so, and the caller rebuilds. A full disk refuses changes,
but for deletions there is a reserve of space. Any other failed write leaves the
file in doubt, so it is closed, and `reopen` writes all of it anew: fsync is never
retried as if nothing had happened (a failed one may have dropped the pages).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from services.kubelet.errors import StoreError, StoreFullError

SCHEMA_VERSION = 2
RESERVE_BYTES = 1 << 20
# What brings a file of the version before to this one. Each step may assume only the one before it.
MIGRATIONS = {
    1: """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE objects (
  kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  uid TEXT NOT NULL, revision INTEGER NOT NULL, origin TEXT NOT NULL,
  created TEXT NOT NULL, deleted TEXT, grace INTEGER, body TEXT NOT NULL,
  PRIMARY KEY (kind, namespace, name)
) STRICT;
""",
    # Two objects of one UID would fight over the same containers.
    2: "CREATE UNIQUE INDEX objects_uid ON objects (uid);",
}
_UNTRUSTED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class Row:
    """One object as stored: times in ISO 8601 and UTC, `body` as JSON, `origin` a file or empty."""

    kind: str
    namespace: str
    name: str
    uid: str
    revision: int
    origin: str
    created: str
    deleted: str | None
    grace: int | None
    body: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What was found. `lost` says why rows may be missing; `aside` is where the bad file went."""

    rows: tuple[Row, ...] = ()
    revision: int = 0
    lost: str = ""
    aside: str = ""


class Untrusted(Exception):  # noqa: N818  # a finding, which `open` answers
    """The file's content cannot be trusted."""


_NAMES = tuple(Row.__dataclass_fields__)
_INSERT = f"INSERT OR REPLACE INTO objects VALUES ({', '.join('?' * len(_NAMES))})"
_REVISION = "INSERT OR REPLACE INTO meta VALUES ('revision', ?)"


class Database:
    """Opens the file and keeps it. Not safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def open(self, *, stamp: str) -> Opened:
        """Open or make the file. One that cannot be trusted is renamed with `stamp` at its end.

        Raises `StoreError` where the disk does not let us.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self._path.exists() or self._path.stat().st_size == 0
            try:
                opened = self._open()
            except Untrusted as why:
                aside = self._set_aside(stamp)
                self._open()
                return Opened(lost=str(why), aside=aside)
            return Opened(lost="there was no file") if fresh else opened
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error

    def _open(self) -> Opened:
        try:
            self._connect()
            self._migrate()
            rows = self._execute(f"SELECT {', '.join(_NAMES)} FROM objects").fetchall()
            return Opened(tuple(Row(*row) for row in rows), self._meta("revision"))
        except sqlite3.DatabaseError as error:
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNTRUSTED or "no such" in str(error):
                raise Untrusted(str(error)) from error
            raise
        except Untrusted:
            self.close()
            raise

    def _connect(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._execute("PRAGMA journal_mode=WAL")
        self._execute("PRAGMA synchronous=FULL")
        owner = self._path.stat()
        self._inode = owner.st_ino
        if owner.st_uid != os.geteuid():
            raise Untrusted(f"it belongs to user {owner.st_uid}")
        wrong = self._execute("PRAGMA quick_check").fetchone()[0]
        if wrong != "ok":
            raise Untrusted(str(wrong))

    def _migrate(self) -> None:
        """Bring the schema to ours, step by step, each in a transaction; the old file is kept beside."""
        present = self._version()
        if present > SCHEMA_VERSION:
            raise Untrusted(f"a newer Tripod wrote it (schema {present}, ours is {SCHEMA_VERSION})")
        if 0 < present < SCHEMA_VERSION:
            self._copy(self._path.with_name(f"{self._path.name}.schema{present}"))
        for version in range(present + 1, SCHEMA_VERSION + 1):
            statements = [
                *MIGRATIONS[version].split(";"),
                f"INSERT OR REPLACE INTO meta VALUES ('schema', {version})",
            ]
            self._transact([(text, ()) for text in statements if text.strip()])

    def _version(self) -> int:
        tables = {row[0] for row in self._execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return 0
        if not {"meta", "objects"} <= tables:
            raise Untrusted(f"it holds other tables: {', '.join(sorted(tables))}")
        return self._meta("schema")

    def _copy(self, target: Path) -> None:
        assert self._connection is not None, "open comes first"
        with closing(sqlite3.connect(target)) as copy:
            self._connection.backup(copy)

    def _set_aside(self, stamp: str) -> str:
        aside = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(f"{aside}{suffix}")
        return str(aside)

    def _execute(self, text: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        if self._connection is None:
            raise sqlite3.OperationalError("the file is closed")
        return self._connection.execute(text, values)

    def _meta(self, name: str) -> int:
        found = self._execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(found[0]) if found else 0

    def write(
        self,
        upserts: Sequence[Row],
        deletes: Sequence[tuple[str, str, str]],
        revision: int,
        *,
        freeing: bool = False,
    ) -> None:
        """Change rows and the revision: all or nothing.

        With `freeing`, a full disk is met with the reserve. Raises `StoreFullError`;
        `StoreError` when the file is in doubt, and then nothing works until `reopen`.
        """
        where = "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?"
        statements: list[tuple[str, Sequence[object]]] = [(where, key) for key in deletes]
        statements += [(_INSERT, astuple(row)) for row in upserts]
        statements.append((_REVISION, (revision,)))
        try:
            self._write(statements, freeing=freeing)
        except StoreFullError:
            raise
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error

    def _write(self, statements: Sequence[tuple[str, Sequence[object]]], *, freeing: bool) -> None:
        if self._path.stat().st_ino != self._inode:
            raise OSError("another file is in its place")
        try:
            self._transact(statements)
        except sqlite3.Error as error:
            if not _disk_is_full(error, self._path.parent):
                raise
            if not freeing or not self._reserve.exists():
                raise StoreFullError(str(self._path)) from error
            self._reserve.unlink()
            self._transact(statements)

    def _transact(self, statements: Sequence[tuple[str, Sequence[object]]]) -> None:
        self._execute("BEGIN IMMEDIATE")
        try:
            for text, values in statements:
                self._execute(text, values)
            self._execute("COMMIT")
        except BaseException:
            if self._connection is not None and self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._execute("ROLLBACK")
            raise

    def reopen(self, rows: Sequence[Row], revision: int) -> None:
        """Open the file again after a failed write, and make it say what was acknowledged.

        What the failed write changed, if anything, goes. Raises `StoreError`.
        """
        self.close()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connect()
            self._migrate()
            statements: list[tuple[str, Sequence[object]]] = [("DELETE FROM objects", ())]
            statements += [(_INSERT, astuple(row)) for row in rows]
            self._transact([*statements, (_REVISION, (revision,))])
        except (sqlite3.Error, OSError, Untrusted) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error

    def keep_reserve(self) -> bool:
        """Make sure that the reserve is there; False while the disk has no room for it."""
        if self._reserve.exists():
            return True
        try:
            with self._reserve.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            return False
        return True

    def close(self) -> None:
        """Close the file. May be repeated."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _disk_is_full(error: sqlite3.Error, directory: Path) -> bool:
    """Tell a full disk from others: SQLite says FULL, or an I/O error where nothing is free."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return True
    if code & 0xFF != sqlite3.SQLITE_IOERR:
        return False
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize < 64 << 10
