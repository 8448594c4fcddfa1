"""The inside of the store's file: tables, versions, sums. What it reads, it distrusts.

A file is trusted when it is a regular file of ours, SQLite finds nothing wrong with
it, its version is one we know, and each row and the revision match their sums
(SQLite's own pages carry none, so a flipped bit in a text would pass). A file under
the mark `rebuilding` is whole, but may lack pods that the runtime still knows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path

VERSION = 3
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
    3: """
ALTER TABLE objects ADD COLUMN sum TEXT NOT NULL DEFAULT '';
UPDATE objects SET sum = row_sum(
  kind, namespace, name, uid, revision, origin, created, deleted, grace, body);
INSERT INTO meta SELECT 'revision_check', -1 - value FROM meta WHERE name = 'revision';
""",
}
_OF_THE_HOST = frozenset(
    (
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    )
)
_MAGIC = b"SQLite format 3\0"
# Bytes 18 and 19 of the header: 1 is the rollback journal, 2 the write-ahead log.
_FORMATS = {1, 2}
Statement = tuple[str, Sequence[object]]


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
    # A Secret's holds its values.
    body: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Content:
    """What a trusted file holds."""

    rows: tuple[Row, ...]
    revision: int
    rebuilding: bool


class Untrusted(Exception):  # noqa: N818  # a finding, which the database answers
    """The file's content cannot be trusted."""


_NAMES = tuple(Row.__dataclass_fields__)
_INSERT = f"INSERT OR REPLACE INTO objects ({', '.join(_NAMES)}, sum) VALUES ({'?, ' * len(_NAMES)}?)"
_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
DELETE_ALL: Statement = ("DELETE FROM objects", ())
SETTLED: Statement = ("DELETE FROM meta WHERE name = 'rebuilding'", ())
REBUILDING: Statement = (_META, ("rebuilding", 1))


def row_sum(*values: object) -> str:
    """Sum up a row's values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def insert(row: Row) -> Statement:
    """Put a row in the place of the one with its key or its UID."""
    return _INSERT, (*astuple(row), row_sum(*astuple(row)))


def delete(key: tuple[str, str, str]) -> Statement:
    """Remove the row of a kind, namespace and name."""
    return "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", key


def revise(revision: int) -> list[Statement]:
    """Set the revision."""
    return [(_META, ("revision", revision)), (_META, ("revision_check", -1 - revision))]


def inspect(path: Path) -> None:
    """Look at a file before SQLite does, which would change some. Raises `Untrusted`, `OSError`."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise Untrusted("it is no regular file")
    if found.st_uid != os.geteuid():
        raise Untrusted(f"it belongs to user {found.st_uid}")
    if found.st_size == 0:
        raise Untrusted("it is empty")
    with path.open("rb") as file:
        head = file.read(100)
    if not head.startswith(_MAGIC) or len(head) < 100 or not {head[18], head[19]} <= _FORMATS:
        raise Untrusted("file is not a database")


def load(connection: sqlite3.Connection) -> Content:
    """Check everything, bring the file to our version, read it. Raises `Untrusted`, `sqlite3.Error`."""
    wrong = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if wrong != "ok":
        raise Untrusted(str(wrong))
    migrate(connection)
    return Content(_rows(connection), _revision(connection), _meta(connection, "rebuilding") is not None)


def of_the_host(error: sqlite3.Error) -> bool:
    """Tell whether an error speaks of the disk or of another process, not of what the file holds."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_HOST


def _rows(connection: sqlite3.Connection) -> tuple[Row, ...]:
    found = []
    for *values, told in connection.execute(f"SELECT {', '.join(_NAMES)}, sum FROM objects"):
        if row_sum(*values) != told:
            raise Untrusted(f"the sum of {values[0]} {values[2]!r} does not match")
        found.append(Row(*values))
    return tuple(found)


def _revision(connection: sqlite3.Connection) -> int:
    revision, check = _meta(connection, "revision"), _meta(connection, "revision_check")
    if revision is None and check is None:
        return 0
    if revision is None or check != -1 - revision:
        raise Untrusted("the sum of the revision does not match")
    return revision


def _meta(connection: sqlite3.Connection, name: str) -> int | None:
    found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else None


def version(connection: sqlite3.Connection) -> int:
    """Return the version of a file, 0 for a new one. Raises `Untrusted` for one that is not ours."""
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return 0
    if not {"meta", "objects"} <= tables:
        raise Untrusted(f"it holds other tables: {', '.join(sorted(tables))}")
    present = _meta(connection, "schema") or 0
    if present > VERSION:
        raise Untrusted(f"a newer Tripod wrote it (schema {present}, ours is {VERSION})")
    if present < 1:
        raise Untrusted(f"it says that its schema is {present}")
    return present


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to our version, step by step, each in a transaction. A new one is `rebuilding`."""
    present = version(connection)
    connection.create_function("row_sum", len(_NAMES), row_sum, deterministic=True)
    for number in range(present + 1, VERSION + 1):
        statements: list[Statement] = [(text, ()) for text in MIGRATIONS[number].split(";") if text.strip()]
        statements.append((_META, ("schema", number)))
        if number == 1:
            statements.append(REBUILDING)
        transact(connection, statements)


def transact(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    """Do all of it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for text, values in statements:
            connection.execute(text, values)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
