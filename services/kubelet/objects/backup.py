"""A second copy of the store's rows, for the day the first cannot be read.

One JSON file with a checksum, replaced whole a moment after each change. It may be
a second older than the store, so it is read only when the store is lost; should it
be newer, the store has lost something that it acknowledged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from services.kubelet.objects.schema import Row


class Backup:
    """Writes and reads one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, rows: Sequence[Row], revision: int) -> None:
        """Replace the copy. Raises `OSError`; the old one stays."""
        body = json.dumps({"revision": revision, "rows": [asdict(row) for row in rows]})
        fresh = self._path.with_name(f"{self._path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(fresh, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{_sum(body)}\n{body}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)

    def read(self, *, stamp: str) -> tuple[list[Row], int]:
        """Return the rows and their revision; nothing when there is no copy.

        One that is not whole is renamed with `stamp` at its end, and counts as none.
        Raises `OSError` where it cannot be read: that is not the same as none.
        """
        try:
            found, _, body = self._path.read_bytes().decode().partition("\n")
            if found != _sum(body.rstrip("\n")):
                raise ValueError("the sum does not match")
            values = json.loads(body)
            return [Row(**row) for row in values["rows"]], int(values["revision"])
        except FileNotFoundError:
            return [], 0
        except (ValueError, KeyError, TypeError, IsADirectoryError):
            self._path.rename(self._path.with_name(f"{self._path.name}.damaged-{stamp}"))
            return [], 0


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
