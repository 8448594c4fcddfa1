"""Make the store files of every schema that was: `python -m tests.lab.store_fixtures`.

Each is what a kubelet of that schema left after a clean end. They are kept in the
repository, so that a change of today cannot change what yesterday wrote.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from dataclasses import astuple
from ipaddress import IPv4Network
from pathlib import Path

from services.kubelet.core.allocate import Ranges
from services.kubelet.core.model import ObjectKey
from services.kubelet.objects import schema
from services.kubelet.objects.database import Database
from services.kubelet.objects.schema import Row
from services.kubelet.objects.store import ObjectStore
from tests.fakes.clock import FakeClock

FOLDER = Path(__file__).resolve().parent.parent / "faults" / "fixtures"
RANGES = Ranges(IPv4Network("10.0.0.0/24"))


def fixture(version: int) -> Path:
    """Return where the file of a schema lies."""
    return FOLDER / f"schema{version}.db"


async def _rows(path: Path) -> tuple[Row, ...]:
    """Let a store of today write two pods, one of them deleted, and a service."""
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "app", "image": "app:1"}]}}
    web = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    }
    values = [*({**pod, "metadata": {"name": name, "labels": {"app": name}}} for name in ("web", "old")), web]
    store = ObjectStore(path, RANGES, FakeClock(), run_id="fixture")
    await store.open()
    await store.settle()
    await store.apply("\n---\n".join(map(json.dumps, values)).encode())
    await store.delete([ObjectKey("Pod", "default", "old")], grace_seconds=7)
    await store.close()
    database = Database(path)
    opened = database.open(stamp="never")
    database.close()
    return opened.rows


def _write(path: Path, version: int, rows: tuple[Row, ...]) -> None:
    names = ", ".join(Row.__dataclass_fields__)
    bare = f"INSERT INTO objects ({names}) VALUES ({', '.join('?' * len(astuple(rows[0])))})"
    revision = max(row.revision for row in rows)
    statements = [(bare, astuple(row)) for row in rows] if version < 3 else [*map(schema.insert, rows)]
    statements += schema.revise(revision)[: 1 if version < 3 else 2]
    statements.append(("INSERT INTO meta VALUES ('schema', ?)", (version,)))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.create_function("row_sum", len(Row.__dataclass_fields__), schema.row_sum)
        for number in range(1, version + 1):
            connection.executescript(schema.MIGRATIONS[number])
        schema.transact(connection, statements)
    path.chmod(0o600)


def main() -> int:
    """Write those that are not there; one that is there is never changed."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(_rows(Path(folder) / "db"))
    for version in range(1, schema.VERSION + 1):
        if not fixture(version).exists():
            _write(fixture(version), version, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
