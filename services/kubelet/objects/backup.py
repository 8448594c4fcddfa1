"""A second copy of the store's rows, for the day the first cannot be read.

One JSON file with a checksum, replaced whole a moment after each change. It may be
a second older than the store, so it is read only when the store is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from services.kubelet.objects.database import Row


class Backup:
    """Writes and reads one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, rows: Sequence[Row], revision: int) -> None:
        """Replace the copy. Raises `OSError`; the old one stays."""
        body = json.dumps({"revision": revision, "rows": [asdict(row) for row in rows]})
        fresh = self._path.with_name(f"{self._path.name}.new")
        with fresh.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{_sum(body)}\n{body}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)

    def read(self) -> tuple[list[Row], int]:
        """Return the rows and their revision; nothing when there is no copy, or none that is whole."""
        try:
            found, _, body = self._path.read_text(encoding="utf-8").partition("\n")
            if found != _sum(body.rstrip("\n")):
                return [], 0
            values = json.loads(body)
            return [Row(**row) for row in values["rows"]], int(values["revision"])
        except (OSError, ValueError, KeyError, TypeError):
            return [], 0


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
