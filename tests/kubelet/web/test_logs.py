"""Containers' logs through the secure port."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.kubelet.web.port import Port, held, secure, start_pod
from tests.waiting import until

pytestmark = pytest.mark.asyncio
PATH = "/containerLogs/default/web/app"


def line(second: int, text: str, stream: str = "stdout", tag: str = "F") -> str:
    """Write an entry."""
    return f"2026-01-01T00:00:{second:02}.5Z {stream} {tag} {text}\n"


def write(log: Path, *lines: str) -> None:
    """Append entries."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.writelines(lines)


async def prepared(port: Port, *lines: str) -> Path:
    """Run the pod, with a log of these lines."""
    log = port.log_root / "default_web_uid-1/app/0.log"
    write(log, *lines)
    await start_pod(port, log_path=str(log))
    return log


LINES = (
    line(1, "one"),
    line(2, "two ", tag="P"),
    line(2, "parts"),
    line(3, "bad", stream="stderr"),
    line(4, "four"),
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "one\ntwo parts\nbad\nfour\n"),
        ("?tailLines=2", "bad\nfour\n"),
        ("?tail=1", "four\n"),
        ("?tailLines=0", ""),
        ("?limitBytes=5", "one\nt"),
        ("?stream=Stderr", "bad\n"),
        ("?stream=Stdout", "one\ntwo parts\nfour\n"),
        ("?sinceTime=2026-01-01T00:00:03.5Z", "bad\nfour\n"),
        ("?sinceTime=2026-01-01T01:00:04%2B01:00", "four\n"),
        ("?sinceSeconds=1", ""),
        ("?timestamps=true&tailLines=1", "2026-01-01T00:00:04.500000000Z four\n"),
        (
            "?timestamps=true&stream=Stdout&limitBytes=76",
            "2026-01-01T00:00:01.500000000Z one\n2026-01-01T00:00:02.500000000Z two parts\n",
        ),
    ],
)
async def test_each_option_is_honoured(tmp_path: Path, query: str, expected: str) -> None:
    """Parts of a line are one line, with one time."""
    async with secure(tmp_path) as port:
        await prepared(port, *LINES)
        status, text = await port.get(PATH + query, port.admin)

    assert status == 200
    assert text == expected


async def test_what_was_rotated_away_is_part_of_the_log(tmp_path: Path) -> None:
    """And of its last lines."""
    async with secure(tmp_path) as port:
        log = await prepared(port, line(9, "newest"))
        write(log.with_name("0.log.20260101-000001"), line(1, "a"), line(2, "b"))
        write(log.with_name("0.log.20260101-000005"), line(5, "c"))
        write(log.with_name("1.log.20260101-000005"), line(5, "another instance"))
        whole = await port.get(PATH, port.admin)
        last = await port.get(f"{PATH}?tailLines=3", port.admin)

    assert whole == (200, "a\nb\nc\nnewest\n")
    assert last == (200, "b\nc\nnewest\n")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{PATH}?tailLines=x", (400, '{"message": "Unable to decode query."}')),
        (f"{PATH}?tailLines=-1", (422, '{"message": "Invalid request."}')),
        ("/containerLogs/default/none/app", (404, 'pod "none" does not exist')),
        ("/containerLogs/default/web/none", (404, 'container "none" not found in pod "web"')),
        (
            "/containerLogs/default/web/idle",
            (400, 'container "idle" in pod "web" is waiting to start - no logs yet'),
        ),
        (
            f"{PATH}?previous=true",
            (400, 'previous terminated container "app" in pod "web" not found'),
        ),
    ],
)
async def test_errors_have_the_originals_words(tmp_path: Path, path: str, expected: tuple[int, str]) -> None:
    """And its codes."""
    async with secure(tmp_path) as port:
        await prepared(port, *LINES)

        assert await port.get(path, port.admin) == expected


async def test_only_get_reads(tmp_path: Path) -> None:
    """As the original answers."""
    async with secure(tmp_path) as port:
        assert await port.get(PATH, port.admin, method="POST") == (405, "Method Not Allowed")


async def test_a_follower_sees_each_line_over_rotations_until_the_container_ends(tmp_path: Path) -> None:
    """Several at once, as a reader finds them who was busy elsewhere."""
    async with secure(tmp_path) as port, port.session() as session, asyncio.timeout(20):
        log = await prepared(port, line(0, "first"))
        async with session.get(port.url(f"{PATH}?follow=true")) as answer:
            assert await answer.content.readline() == b"first\n"
            write(log, line(1, "a"))
            for number in range(2, 6):
                log.rename(log.with_name(f"0.log.20260101-00000{number}"))
                write(log, line(number, f"file {number}"))
            found = [await answer.content.readline() for _ in range(5)]
            write(log, line(9, "last"))
            port.runtime.end(port.pod.uid, "app", 0)
            rest = await answer.content.read()

    assert found == [b"a\n", b"file 2\n", b"file 3\n", b"file 4\n", b"file 5\n"]
    assert rest == b"last\n"


async def test_a_follower_that_goes_leaves_nothing_open(tmp_path: Path) -> None:
    """Neither files nor tasks, though the container writes nothing."""
    async with secure(tmp_path) as port, asyncio.timeout(20):
        await prepared(port, *LINES)
        for _ in range(3):
            await port.get(PATH, port.admin)
        before = held()
        async with port.session() as session:
            answers = [await session.get(port.url(f"{PATH}?follow=true")) for _ in range(20)]
            assert await answers[0].content.readline() == b"one\n"
            for answer in answers:
                answer.close()

        await until(lambda: held() <= before)


async def test_a_log_that_nobody_reads_on_is_not_read_either(tmp_path: Path) -> None:
    """A slow client holds what fits in its connection, not the log."""
    async with secure(tmp_path) as port, port.session() as session, asyncio.timeout(20):
        log = await prepared(port, line(0, "first"))
        with log.open("a") as file:
            for _ in range(400):
                file.write(line(1, "x" * 100_000))
        asked: list[int] = []
        actual = os.pread

        def counted(descriptor: int, count: int, offset: int) -> bytes:
            asked.append(offset)
            return actual(descriptor, count, offset)

        patch = pytest.MonkeyPatch()
        patch.setattr(os, "pread", counted)
        try:
            async with session.get(port.url(PATH)) as answer:
                assert await answer.content.readline() == b"first\n"
                count = -1
                while count != len(asked):
                    count = len(asked)
                    await asyncio.sleep(0.3)  # nothing is to happen
                held = max(asked)
        finally:
            patch.undo()

    assert held < 20_000_000


async def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    """A pod that mounts the folder of logs shows nothing of the node."""
    secret = tmp_path / "secret"
    write(secret, line(1, "secret"))
    async with secure(tmp_path) as port:
        log = await prepared(port, *LINES)
        log.unlink()
        log.symlink_to(secret)
        answer = await port.get(PATH, port.admin)

    assert answer == (400, "unable to retrieve container logs: the file is a symbolic link")
