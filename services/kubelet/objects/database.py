"""The store's file: SQLite, one row for each object, a transaction for each change.

`synchronous=FULL` in WAL mode: what was answered survives a kill and a power cut.
Every call runs in one thread of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.kubelet.errors import StoreError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS objects (
  kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  uid TEXT NOT NULL, revision INTEGER NOT NULL, origin TEXT NOT NULL,
  created TEXT NOT NULL, deleted TEXT, grace INTEGER, body TEXT NOT NULL,
  PRIMARY KEY (kind, namespace, name)
) STRICT;
"""


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


class Database:
    """Opens the file and keeps it. Not safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> tuple[list[Row], int]:
        """Open or make the file; returns its rows and the last revision. Raises `StoreError`."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._check()
            rows = self._connection.execute(f"SELECT {', '.join(Row.__dataclass_fields__)} FROM objects")
            return [Row(*row) for row in rows], self._meta("revision")
        except (sqlite3.DatabaseError, OSError) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error

    def _check(self) -> None:
        assert self._connection is not None, "open comes first"
        wrong = self._connection.execute("PRAGMA quick_check").fetchone()[0]
        if wrong != "ok":
            raise sqlite3.DatabaseError(wrong)
        self._connection.executescript(_SCHEMA)
        version = self._meta("schema")
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"it was written by a newer Tripod (schema {version})")
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))

    def _meta(self, name: str) -> int:
        assert self._connection is not None, "open comes first"
        found = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(found[0]) if found else 0

    def write(self, upserts: Sequence[Row], deletes: Sequence[tuple[str, str, str]], revision: int) -> None:
        """Change rows and the revision: all or nothing. Raises `StoreError`."""
        assert self._connection is not None, "open comes first"
        marks = ", ".join("?" * len(Row.__dataclass_fields__))
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            values = [tuple(getattr(row, name) for name in Row.__dataclass_fields__) for row in upserts]
            self._connection.executemany(f"INSERT OR REPLACE INTO objects VALUES ({marks})", values)
            self._connection.executemany(
                "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", list(deletes)
            )
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('revision', ?)", (revision,))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise StoreError(str(self._path), str(error)) from error

    def close(self) -> None:
        """Close the file. May be repeated."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
