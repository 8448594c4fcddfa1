"""Opening below a folder that an attacker can write to."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.beneath import Refused, open_file


def _link(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def _hard_link(place: Path, secret: Path) -> None:
    place.hardlink_to(secret)


def _fifo(place: Path, secret: Path) -> None:
    os.mkfifo(place)


def _folder(place: Path, secret: Path) -> None:
    place.mkdir()


def _socket(place: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(place))


def _linked_folder(place: Path, secret: Path) -> None:
    place.parent.rmdir()
    place.parent.symlink_to(secret.parent)


TRAPS = [_link, _hard_link, _fifo, _folder, _socket, _linked_folder]


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_refused_and_nothing_is_touched(
    tmp_path: Path, trap: Callable[[Path, Path], None], append: bool
) -> None:
    """Neither read nor made nor waited for, whatever lies in the file's place."""
    secret = tmp_path / "outside/0.log"
    secret.parent.mkdir()
    secret.write_text("secret")
    place = tmp_path / "root/app/0.log"
    place.parent.mkdir(parents=True)
    trap(place, secret)

    with pytest.raises(OSError) as caught:
        open_file(tmp_path / "root", place, append=append, alone=True)

    assert isinstance(caught.value, Refused | NotADirectoryError)
    assert secret.read_text() == "secret"


@pytest.mark.netns
def test_a_device_is_not_even_opened(tmp_path: Path) -> None:
    """Opening one may do things; a major number of nothing would fail with another error."""
    os.mknod(tmp_path / "0.log", 0o600 | 0o020000, os.makedev(231, 7))

    with pytest.raises(Refused, match="is no regular file"):
        open_file(tmp_path, tmp_path / "0.log")


@pytest.mark.netns
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Who may lay files there decides what we show."""
    place = tmp_path / "0.log"
    place.touch()
    os.chown(place, 12345, -1)

    with pytest.raises(Refused, match="belongs to user 12345"):
        open_file(tmp_path, place, alone=True)


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd", ""])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    """By its text alone."""
    with pytest.raises(Refused, match="is not below"):
        open_file(tmp_path, tmp_path / path)


def test_appending_makes_what_is_missing(tmp_path: Path) -> None:
    """Folders and the file; a second time the same file, at its end."""
    place = tmp_path / "pod/app/0.log"
    for text in (b"one", b"two"):
        descriptor = open_file(tmp_path, place, append=True, alone=True)
        os.write(descriptor, text)
        os.close(descriptor)
    descriptor = open_file(tmp_path, place, alone=True)
    read = os.read(descriptor, 100)
    os.close(descriptor)

    assert read == b"onetwo"
