"""The store's file: SQLite, one row for each object, a transaction for each change.

`synchronous=FULL` in WAL mode: what was answered survives a kill and a power cut.
Every call runs in one thread of its own.

What can go wrong with a file has three answers. One that cannot be trusted (`schema`
says when) is set aside, never overwritten: `open` says so, and the caller rebuilds.
A full disk refuses changes, but for deletions there is a reserve of space. Any other
failed write leaves the file in doubt, so it is closed, and `reopen` writes all of it
anew: fsync is never retried as if nothing had happened (a failed one may have dropped
the pages).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from services.kubelet.errors import StoreError, StoreFullError
from services.kubelet.objects import schema
from services.kubelet.objects.reserve import Reserve
from services.kubelet.objects.schema import Content, Row, Statement, Untrusted

_COMPANIONS = ("", "-wal", "-shm", "-journal")
# After one of these the pages may be gone from memory, too.
_IN_DOUBT = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


@dataclass(frozen=True, slots=True)
class Opened:
    """What was found. `lost` says why rows may be missing; `aside` is where the bad file went."""

    rows: tuple[Row, ...] = ()
    revision: int = 0
    lost: str = ""
    aside: str = ""


class Database:
    """Opens the file and keeps it. Not safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reserve = Reserve(path.with_name(f"{path.name}.reserve"))
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def open(self, *, stamp: str) -> Opened:
        """Open or make the file. One that cannot be trusted is renamed with `stamp` at its end.

        Raises `StoreError` where the disk does not let us.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self.reserve.room(prove=False):
                # SQLite takes space to open a file, too.
                self.reserve.release()
            try:
                if not self._present():
                    self._create()
                    return Opened(lost="there was no file")
                found = self._read()
            except Untrusted as why:
                return self._begin_anew(str(why), stamp)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error
        lost = "an earlier rebuild was not finished" if found.rebuilding else ""
        return Opened(found.rows, found.revision, lost)

    def doubt(self, why: str, *, stamp: str) -> Opened:
        """Set the open file aside and begin a new one. Raises `StoreError`."""
        try:
            return self._begin_anew(why, stamp)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error

    def _begin_anew(self, why: str, stamp: str) -> Opened:
        self.close()
        aside = self._set_aside(stamp)
        self._create()
        return Opened(lost=why, aside=aside)

    def _present(self) -> bool:
        """Tell whether there is a file. A journal without one is a file that lost its head."""
        if os.path.lexists(self._path):
            return True
        journal = self._companion("-wal")
        if journal.exists() and journal.stat().st_size:
            raise Untrusted("its journal is there, the file is not")
        return False

    def _create(self) -> None:
        _make_private(self._path)
        schema.migrate(self._connect())

    def _read(self) -> Content:
        schema.inspect(self._path)
        self._path.chmod(0o600)
        try:
            connection = self._connect()
            present = schema.version(connection)
            if present < schema.VERSION:
                self._copy(connection, self._companion(f".schema{present}"))
            return schema.load(connection)
        except sqlite3.Error as error:
            if schema.of_the_host(error):
                raise
            raise Untrusted(str(error)) from error
        except (ValueError, TypeError) as error:
            # SQLite quotes what it found, which Python reads as UTF-8; a text may be a blob by now.
            raise Untrusted(f"it holds what no kubelet wrote: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        self._inode = self._path.stat().st_ino
        return connection

    def _companion(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def _copy(self, connection: sqlite3.Connection, target: Path) -> None:
        """Keep a file of an older version beside, as it was."""
        with suppress(FileExistsError):
            _make_private(target)
        target.chmod(0o600)
        with closing(sqlite3.connect(target)) as copy:
            connection.backup(copy)

    def _set_aside(self, stamp: str) -> str:
        """Rename the file and its companions; a name that is taken gets a number."""
        name, number = f".damaged-{stamp}", 1
        while any(os.path.lexists(self._companion(name + suffix)) for suffix in _COMPANIONS):
            name, number = f".damaged-{stamp}-{number}", number + 1
        for suffix in _COMPANIONS:
            with suppress(FileNotFoundError):
                self._companion(suffix).rename(self._companion(name + suffix))
        return str(self._companion(name))

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
        statements = [schema.delete(key) for key in deletes]
        statements += [schema.insert(row) for row in upserts]
        self._write([*statements, *schema.revise(revision)], freeing=freeing)

    def settle(self) -> None:
        """Note that the file holds everything again. Raises as `write` does."""
        self._write([schema.SETTLED], freeing=True)

    def _write(self, statements: Sequence[Statement], *, freeing: bool) -> None:
        try:
            self._transact(statements, freeing=freeing)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error

    def _transact(self, statements: Sequence[Statement], *, freeing: bool) -> None:
        if self._connection is None:
            raise OSError("the file is closed")
        if self._path.stat().st_ino != self._inode:
            raise OSError("another file is in its place")
        while True:
            try:
                schema.transact(self._connection, statements)
                return
            except sqlite3.Error as error:
                if not self._is_full(error):
                    raise
                if not (freeing and self.reserve.release()):
                    raise StoreFullError(str(self._path)) from error

    def _is_full(self, error: sqlite3.Error) -> bool:
        """Tell a full disk from others: SQLite says FULL, or a write fails where nothing is free."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF == sqlite3.SQLITE_FULL:
            return True
        if code & 0xFF != sqlite3.SQLITE_IOERR or code in _IN_DOUBT:
            return False
        return not self.reserve.room(prove=False)

    def reopen(self, rows: Sequence[Row], revision: int, *, stamp: str, settled: bool) -> str:
        """Open the file again after a failed write, and make it say what was acknowledged.

        What the failed write changed, if anything, goes. A file that cannot be trusted
        any more, or that is not the one that was open, is set aside; returns where it
        went. Raises `StoreError`.
        """
        self.close()
        aside = ""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                if not self._present():
                    self._create()
                elif self._path.stat().st_ino != self._inode:
                    raise Untrusted("another file is in its place")
                else:
                    self._read()
            except Untrusted as why:
                aside = self._begin_anew(str(why), stamp).aside
            statements = [schema.DELETE_ALL, *map(schema.insert, rows), *schema.revise(revision)]
            mark = schema.SETTLED if settled else schema.REBUILDING
            assert self._connection is not None, "opened above"
            schema.transact(self._connection, [*statements, mark])
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreError(str(self._path), str(error)) from error
        return aside

    def close(self) -> None:
        """Close the file. May be repeated."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _make_private(path: Path) -> None:
    """Make an empty file for us alone: secrets and the values of environments will be in it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
