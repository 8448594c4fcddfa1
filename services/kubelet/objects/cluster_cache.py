"""What a node keeps of its cluster, to go on without the control plane: pods, and what they bring in.

One SQLite file, for its owner alone, since Secrets are in it. It is a copy: one that cannot be
read is set aside, a write that fails costs what it holds, and neither ends anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from services.common.kuberequest import Json
from services.common.logs import get_logger
from services.kubelet.core.model import ObjectKey, PodUid

T = TypeVar("T")
log = get_logger(__name__)
_VERSION = 1
_TABLES = (
    "CREATE TABLE IF NOT EXISTS pods (uid TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS objects (kind TEXT, namespace TEXT, name TEXT, body TEXT NOT NULL,"
    " PRIMARY KEY (kind, namespace, name)) STRICT",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run before has kept. Empty when it kept nothing of this cluster, or nothing can be read."""

    pods: Mapping[PodUid, Json] = field(default_factory=dict, repr=False)
    objects: Mapping[ObjectKey, Json] = field(default_factory=dict, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)


class ClusterCache:
    """The file. `open` first, `close` at the end. `server` names the cluster: another one's is not used."""

    def __init__(self, path: Path, server: str) -> None:
        self._path = path
        self._server = server
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cluster-cache")
        self._told = False

    async def open(self) -> Kept:
        """Read the file, or make it. Raises nothing."""
        return await self._call(self._open) or Kept()

    async def close(self) -> None:
        """Close the file."""
        await self._call(self._close)
        self._thread.shutdown(wait=True)

    async def keep_pods(self, bodies: Mapping[PodUid, Json], gone: Collection[PodUid] = ()) -> None:
        """Keep pods, and forget some."""

        def act() -> None:
            with self._opened() as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO pods VALUES (?, ?)",
                    [(uid, json.dumps(body)) for uid, body in bodies.items()],
                )
                connection.executemany("DELETE FROM pods WHERE uid = ?", [(uid,) for uid in gone])

        if bodies or gone:
            await self._call(act)

    async def keep_objects(self, bodies: Mapping[ObjectKey, Json | None]) -> None:
        """Keep objects that pods bring in, and forget those of which there is none."""
        gone = [(key.kind, key.namespace, key.name) for key, body in bodies.items() if body is None]
        there = [
            (key.kind, key.namespace, key.name, json.dumps(body))
            for key, body in bodies.items()
            if body is not None
        ]

        def act() -> None:
            with self._opened() as connection:
                connection.executemany(
                    "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", gone
                )
                connection.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", there)

        if bodies:
            await self._call(act)

    async def keep_fact(self, name: str, value: str) -> None:
        """Keep something that the cluster said of this node."""

        def act() -> None:
            with self._opened() as connection:
                connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

        await self._call(act)

    async def _call(self, act: Callable[[], T]) -> T | None:
        """Run in the file's thread; a failure is told once and costs what was to be kept."""
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._thread, act)
        except (sqlite3.Error, OSError) as error:
            if not self._told:
                log.warning("Could not keep the cluster's objects", path=str(self._path), error=str(error))
            self._told = True
            return None
        self._told = False
        return made

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise OSError("the file is not open")
        return self._connection

    def _open(self) -> Kept:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._read()
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            self._close()
            aside = self._path.with_name(f"{self._path.name}.damaged")
            log.error("Set the kept cluster objects aside", path=str(aside), error=str(error))
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).rename(f"{aside}{suffix}")
            return self._read()

    def _read(self) -> Kept:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._path.chmod(0o600)
        connection = sqlite3.connect(self._path, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise ValueError(f"version {version} is not known")
        with connection:
            for table in _TABLES:
                connection.execute(table)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        return self._content(connection)

    def _content(self, connection: sqlite3.Connection) -> Kept:
        facts = dict(connection.execute("SELECT name, value FROM facts"))
        if facts.get("server") != self._server:
            with connection:
                for table in ("pods", "objects", "facts"):
                    connection.execute(f"DELETE FROM {table}")
                connection.execute("INSERT INTO facts VALUES ('server', ?)", (self._server,))
            return Kept()
        pods = {
            PodUid(uid): json.loads(body) for uid, body in connection.execute("SELECT uid, body FROM pods")
        }
        rows = connection.execute("SELECT kind, namespace, name, body FROM objects")
        objects = {ObjectKey(kind, space, name): json.loads(body) for kind, space, name, body in rows}
        return Kept(pods, objects, facts)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
