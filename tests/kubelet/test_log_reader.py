"""What a container lays in its log's place is never shown."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.beneath import Refused, open_file
from services.kubelet.adapters import log_reader
from services.kubelet.cri.logs import LogFile
from tests.waiting import until

pytestmark = [pytest.mark.asyncio, pytest.mark.fault("S5")]
ROOT = Path(__file__).resolve().parent.parent.parent
LINE = "2026-01-01T00:00:00.000000000Z stdout F secret\n"


async def _grows() -> bool:
    return True


async def _read(root: Path, path: Path) -> list[bytes]:
    entries = log_reader.read(root, path, tail_lines=None, since="", follow=None)
    async with asyncio.timeout(10):
        return [entry.line async for entry in entries]


async def test_a_reader_that_goes_while_its_log_is_opened_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens it cannot be cancelled."""
    log = tmp_path / "0.log"
    await asyncio.to_thread(log.write_text, LINE)
    begun, may_go, opened = threading.Event(), threading.Event(), list[int]()

    def slowly(root: Path, path: Path, *, alone: bool) -> int:
        begun.set()
        may_go.wait(10)
        opened.append(open_file(root, path, alone=alone))
        return opened[-1]

    monkeypatch.setattr(log_reader, "open_file", slowly)
    reading = asyncio.ensure_future(_read(tmp_path, log))  # noqa: TID251  # cancelled
    await asyncio.to_thread(begun.wait, 10)
    reading.cancel()
    await asyncio.wait({reading})
    may_go.set()
    await until(lambda: opened and _leads(opened[0]) != str(log), 10)


def _leads(descriptor: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param(lambda log, secret: log.symlink_to(secret), id="link"),
        pytest.param(lambda log, secret: log.hardlink_to(secret), id="hard-link"),
        pytest.param(lambda log, secret: os.mkfifo(log), id="fifo"),
    ],
)
async def test_a_trap_is_refused_from_the_start_and_at_a_rotation(
    tmp_path: Path, trap: Callable[[Path, Path], None]
) -> None:
    """Before the first byte, and when it appears while a reader follows; the writer refuses it, too."""
    secret, log = tmp_path / "secret", tmp_path / "logs/pod/app/0.log"
    await asyncio.to_thread(secret.write_text, LINE)
    await asyncio.to_thread(log.parent.mkdir, parents=True)
    trap(log, secret)
    with pytest.raises(Refused):
        await _read(tmp_path / "logs", log)
    with pytest.raises(Refused):
        LogFile(log, tmp_path / "cursor")
    log.unlink()
    await asyncio.to_thread(log.write_text, LINE.replace("secret", "open"))
    assert [line.strip() for line in await _read(tmp_path / "logs", log)] == [b"open"]

    async with asyncio.timeout(10):
        following = log_reader.read(tmp_path / "logs", log, tail_lines=None, since="", follow=_grows)
        first = await anext(following)
        log.unlink()
        trap(log, secret)
        with pytest.raises(Refused):
            await anext(following)

    assert first.line.strip() == b"open"
    assert await asyncio.to_thread(secret.read_text) == LINE


@pytest.mark.parametrize("file", ["services/kubelet/adapters/log_reader.py", "services/kubelet/cri/logs.py"])
async def test_logs_are_opened_by_the_one_opener(file: str) -> None:
    """No other way to open a log file stands in the code (S6)."""
    text = await asyncio.to_thread((ROOT / file).read_text)

    assert "open_file" in text
    assert "os.open" not in text
    assert ".open(" not in text
