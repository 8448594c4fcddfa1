"""What containers say at their end, and what they may not do by it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from services.kubelet.adapters.last_words import DiskLastWords
from services.kubelet.core import last_words, volumes
from services.kubelet.core.model import Container, MessagePolicy, Pod, VolumeMount
from services.kubelet.core.observed import ObservedContainer, RuntimeState
from tests.builders import a_container, a_pod, an_instance

pytestmark = pytest.mark.asyncio
ENDED = an_instance(RuntimeState.EXITED, 1, exit_code=1)
SPEAKS = a_container(termination_message_policy=MessagePolicy.FALLBACK_TO_LOGS_ON_ERROR)


async def prepared(folder: Path, container: Container, pod: Pod | None = None, attempt: int = 1) -> Path:
    """Make a container's file."""
    pod = pod or a_pod(container)
    await DiskLastWords(folder).prepare(pod, container, attempt)
    return last_words.message_file(folder, pod.uid, container.name, attempt)


async def heard(folder: Path, container: Container, ended: ObservedContainer = ENDED) -> str:
    """Read what it said."""
    return await DiskLastWords(folder).read(a_pod(container), container, ended)


def write_log(folder: Path, *lines: str) -> None:
    """Write a container's log."""
    file = volumes.log_directory(folder, a_pod()) / volumes.log_path("app", 1)
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"2026-01-01T00:00:00.000000000Z stdout F {line}\n" for line in lines))


async def test_what_is_written_is_heard(tmp_path: Path) -> None:
    """By whoever the container runs as; the next attempt begins with an empty file."""
    file = await prepared(tmp_path, a_container())
    file.write_text("bye")
    await prepared(tmp_path, a_container())
    first = await heard(tmp_path, a_container())
    await prepared(tmp_path, a_container(), attempt=2)

    assert first == "bye"
    assert file.stat().st_mode & 0o777 == 0o666
    assert await heard(tmp_path, a_container(), replace(ENDED, attempt=2)) == ""


async def test_old_files_are_removed(tmp_path: Path) -> None:
    """The one before is kept, as its container is."""
    for attempt in range(4):
        file = await prepared(tmp_path, a_container(), attempt=attempt)

    assert sorted(found.name for found in file.parent.iterdir()) == ["2", "3"]


async def test_a_long_message_is_told_from_its_end(tmp_path: Path) -> None:
    """4096 bytes of it, and of each container of a large pod a share of 12 KiB."""
    file = await prepared(tmp_path, a_container())
    file.write_bytes(b"a" * 100_000 + b"b" * 10)
    large = a_pod(*(a_container(name=f"c{i}") for i in range(9)), a_container())

    assert await heard(tmp_path, a_container()) == "a" * 4086 + "b" * 10
    assert len(await DiskLastWords(tmp_path).read(large, a_container(), ENDED)) == 12288 // 10


async def test_bytes_that_are_no_text_are_told_as_such(tmp_path: Path) -> None:
    """A status is JSON."""
    file = await prepared(tmp_path, a_container())
    file.write_bytes(b"\xff\x00ok")

    assert await heard(tmp_path, a_container()) == "\ufffd\ufffdok"


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "nothing", "link-before"])
async def test_what_was_laid_in_a_files_place_is_not_read(tmp_path: Path, kind: str) -> None:
    """A pod that mounts the node's folders can do so; nothing blocks, and nothing is told."""
    file = await prepared(tmp_path, a_container())
    secret = tmp_path / "secret"
    secret.write_text("secret")
    file.unlink()
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "link":
            file.symlink_to(secret)
        case "folder":
            file.mkdir()
        case "link-before":
            file.parent.rmdir()
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "1").write_text("secret")
            file.parent.symlink_to(tmp_path / "elsewhere")

    assert await heard(tmp_path, a_container()) == ""


async def test_the_log_speaks_for_a_container_that_failed_and_wrote_nothing(tmp_path: Path) -> None:
    """Where its policy says so: 80 lines, 2048 bytes at most."""
    write_log(tmp_path, *(f"line {i}" for i in range(200)))
    await prepared(tmp_path, SPEAKS)
    failed = await heard(tmp_path, SPEAKS)

    assert failed.splitlines() == [f"line {i}" for i in range(120, 200)]
    assert await heard(tmp_path, SPEAKS, replace(ENDED, exit_code=0)) == ""
    assert await heard(tmp_path, a_container()) == ""


async def test_long_lines_of_a_log_are_cut_from_their_end(tmp_path: Path) -> None:
    """The end counts most."""
    write_log(tmp_path / "one", "x" * 5000, "y" * 3000)
    write_log(tmp_path / "two", "z" * 100_000)

    assert await heard(tmp_path / "one", SPEAKS) == "y" * 2047 + "\n"
    assert await heard(tmp_path / "two", SPEAKS) == ""  # A line that is longer than what is read.


async def test_a_volume_in_the_files_place_wins(tmp_path: Path) -> None:
    """Two mounts of one place would be refused."""
    mounts = (VolumeMount("data", "/dev/termination-log"),)

    assert last_words.mount(tmp_path, a_pod(), a_container(volume_mounts=mounts), 0) == ()
    assert last_words.mount(tmp_path, a_pod(), a_container(), 0) == (
        volumes.Mount(f"{tmp_path}/pods/uid-1/containers/app/0", "/dev/termination-log"),
    )
