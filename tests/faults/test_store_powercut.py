"""The power is cut: what was not yet synced may be there, or not, in any mixture.

One run of a writer is recorded call by call. For every moment of it the files are laid
out as a disk may hold them then: each write before the file's last sync, and of those
after it any. What the writer had acknowledged by that moment must be there.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.kubelet.objects.database import Database
from tests.lab import store_driver, strace

pytestmark = [
    pytest.mark.skipif(not strace.AVAILABLE, reason="needs strace: apt-get install strace"),
    pytest.mark.fault("F5"),
    pytest.mark.netns,
]
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_CALLS = "openat,pwrite64,write,fdatasync,fsync,ftruncate,unlink"


@dataclass(frozen=True, slots=True)
class Op:
    """One call that counts: `call` on the file `name`, with bytes and a place; or what was said."""

    call: str
    name: str
    data: bytes = b""
    place: int = 0


def record(path: Path, changes: int) -> list[Op]:
    """Run the writer on `path` and return what it did to its files, and said, in order."""
    log = path.with_name("strace.log")
    command = [sys.executable, "-m", "tests.lab.store_driver", str(path), str(changes)]
    options = ["-f", "-y", "-xx", "-s", "100000", "-e", f"trace={_CALLS}", "-o", str(log)]
    subprocess.run(["strace", *options, *command], check=True, capture_output=True, timeout=60)
    ops = []
    for line in log.read_text().splitlines():
        found = _CALL.match(line)
        if found is not None and int(found[3]) >= 0:
            ops += _parsed(path.parent, found[1], found[2])
    return ops


def _parsed(folder: Path, call: str, arguments: str) -> list[Op]:
    texts = [bytes.fromhex(t.replace("\\x", "")) for t in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)]
    if call in ("openat", "unlink"):
        place = Path(texts[0].decode())
        counts = place.parent == folder and (call == "unlink" or "O_CREAT" in arguments)
        return [Op(call, place.name)] if counts else []
    target = re.match(r"(\d+)<((?:\\x[0-9a-f]{2}|[^>])*)>", arguments)
    if target is None:
        return []
    if call == "write":
        return [Op("said", "", texts[0])] if target[1] == "1" else []
    raw = target[2]
    place = Path(bytes.fromhex(raw.replace("\\x", "")).decode() if raw.startswith("\\x") else raw)
    if place.parent != folder or place.name.endswith("-shm"):
        return []
    number = int(arguments.rsplit(", ", 1)[1]) if call in ("pwrite64", "ftruncate") else 0
    return [Op(call, place.name, texts[0] if texts else b"", number)]


def cut(ops: list[Op], dice: random.Random | None) -> dict[str, bytes]:
    """Return the files after a cut; `dice` chooses which of the unsynced writes came through, None: none."""
    synced: dict[str, int] = {}
    for index, op in enumerate(ops):
        if op.call in ("fdatasync", "fsync"):
            synced[op.name] = index
    files: dict[str, bytearray] = {}
    for index, op in enumerate(ops):
        if op.call == "openat":
            files.setdefault(op.name, bytearray())
        elif op.call == "unlink":
            files.pop(op.name, None)
        elif op.call in ("pwrite64", "ftruncate") and op.name in files:
            durable = index < synced.get(op.name, -1)
            if durable or (dice is not None and dice.random() < 0.5):
                _write(files[op.name], op)
    return {name: bytes(data) for name, data in files.items()}


def _write(file: bytearray, op: Op) -> None:
    if op.call == "ftruncate":
        del file[op.place :]
        return
    file.extend(bytes(max(0, op.place + len(op.data) - len(file))))
    file[op.place : op.place + len(op.data)] = op.data


def test_a_power_cut_at_any_moment_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """The last acknowledged change is there, whole; at most the one under way is there beyond it."""
    source, state = tmp_path / "source", tmp_path / "state"
    source.mkdir()
    database = Database(source / "db")
    database.open(stamp="never")
    database.write(store_driver.pair(1), [], 1)
    database.close()
    begin = (source / "db").read_bytes()
    ops = record(source / "db", 4)
    ops = [Op("openat", "db"), Op("pwrite64", "db", begin), Op("fsync", "db"), *ops]
    dice = random.Random(5)  # the same choices in every run
    said: list[int] = []
    for moment in range(3, len(ops) + 1):
        if ops[moment - 1].call == "said":
            said.append(int(ops[moment - 1].data.split()[-1]))
        for mixture in (None, dice, dice):
            state.mkdir()
            for name, data in cut(ops[:moment], mixture).items():
                (state / name).write_bytes(data)
            database = Database(state / "db")
            opened = database.open(stamp="cut")
            database.close()
            found = store_driver.numbers(opened.rows)
            last = max(said, default=1)
            assert opened.aside == "", f"moment {moment}: {opened.lost}"
            assert found in ({last}, {last + 1}), f"moment {moment}: {found}, acknowledged {last}"
            for left in state.iterdir():
                left.unlink()
            state.rmdir()

    assert said == [2, 3, 4, 5]
