"""Write to a store's file and say what was acknowledged: `python -m tests.lab.store_driver FILE COUNT`.

Each change writes two rows, so a torn one shows. A change that fails is told as refused,
and the file is opened again with what was acknowledged, as the kubelet does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.kubelet.errors import StoreError, StoreFullError
from services.kubelet.objects.database import Database, Opened
from services.kubelet.objects.schema import Row

UNUSABLE = 3
_ATTEMPTS = 3


def pair(number: int) -> list[Row]:
    """Make the rows of one change."""
    return [
        Row("Pod", "default", f"{side}{number}", f"{side}-{number}", number, "", "", None, None, "x" * 900)
        for side in "ab"
    ]


def numbers(rows: tuple[Row, ...]) -> set[int]:
    """Return the changes that rows show. Fails when one of them is there by half."""
    names = {row.name for row in rows}
    found = {int(name[1:]) for name in names}
    assert names == {f"{side}{number}" for side in "ab" for number in found}
    return found


def _mend(database: Database, rows: dict[int, list[Row]], revision: int) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            database.reopen([r for p in rows.values() for r in p], revision, stamp="later", settled=True)
        except StoreError:
            continue
        return True
    return False


def main() -> int:
    """Write, tell, end."""
    database = Database(Path(sys.argv[1]))
    try:
        opened: Opened = database.open(stamp="first")
        database.settle()
    except StoreError as error:
        sys.stdout.write(f"unusable {error.message}\n")
        return UNUSABLE
    rows = {number: pair(number) for number in numbers(opened.rows)}
    first = max(rows, default=0) + 1
    for number in range(first, first + int(sys.argv[2])):
        # The oldest goes with every change.
        oldest = min(rows, default=0)
        gone = [(row.kind, row.namespace, row.name) for row in rows.get(oldest, [])]
        try:
            database.write(pair(number), gone, number, freeing=False)
        except StoreFullError:
            sys.stdout.write(f"full {number}\n")
        except StoreError:
            sys.stdout.write(f"refused {number}\n")
            if not _mend(database, rows, number):
                return UNUSABLE
        else:
            rows.pop(oldest, None)
            rows[number] = pair(number)
            sys.stdout.write(f"gone {oldest} written {number}\n")
        sys.stdout.flush()
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
