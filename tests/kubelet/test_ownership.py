"""Files of a volume are given to a group, and nothing outside of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from services.kubelet.adapters import ownership

GROUP = 4321
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away: run `sudo make test`")


def seen(path: Path) -> tuple[int, str]:
    """Return group and mode of a file, not followed."""
    found = path.lstat()
    return found.st_gid, oct(stat.S_IMODE(found.st_mode))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A folder with a file, a folder, a program and two links out of it."""
    root = tmp_path / "volume"
    (root / "folder").mkdir(parents=True, mode=0o700)
    (root / "folder" / "file").write_text("x")
    (root / "folder" / "file").chmod(0o600)
    (root / "program").write_text("x")
    (root / "program").chmod(0o711)
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "file").write_text("x")
    (outside / "file").chmod(0o600)
    (root / "link").symlink_to(outside / "file")
    (root / "away").symlink_to(outside)
    root.chmod(0o700)
    return root


def test_a_group_may_read_and_write_and_has_what_comes(volume: Path) -> None:
    """New files are the group's, too; those outside stay as they were."""
    ownership.give(volume, GROUP)
    fresh = volume / "folder" / "fresh"
    fresh.touch()

    assert seen(volume) == (GROUP, "0o2770")
    assert seen(volume / "folder") == (GROUP, "0o2770")
    assert seen(volume / "folder" / "file") == (GROUP, "0o660")
    assert seen(volume / "program") == (GROUP, "0o771")
    assert seen(fresh)[0] == GROUP
    assert seen(volume / "link")[0] == GROUP
    assert seen(volume.parent / "outside") == (0, "0o700")
    assert seen(volume.parent / "outside" / "file") == (0, "0o600")


def test_a_read_only_volume_can_be_read(volume: Path) -> None:
    """And no more."""
    ownership.give(volume, GROUP, read_only=True)

    assert seen(volume / "folder" / "file") == (GROUP, "0o640")
    assert seen(volume / "folder") == (GROUP, "0o2750")


def test_a_root_that_is_given_stands_for_all(volume: Path) -> None:
    """Under OnRootMismatch; one that was cut short is done again."""
    ownership.give(volume, GROUP, on_root_mismatch=True)
    late = volume / "late"
    late.touch()
    os.chown(late, 0, 0)
    ownership.give(volume, GROUP, on_root_mismatch=True)
    kept = seen(late)[0]
    os.chown(volume, 0, 0)
    ownership.give(volume, GROUP, on_root_mismatch=True)

    assert (kept, seen(late)[0]) == (0, GROUP)


def test_what_cannot_be_opened_is_given_too(volume: Path) -> None:
    """A FIFO that nobody writes to does not hold us up."""
    os.mkfifo(volume / "fifo", 0o600)
    ownership.give(volume, GROUP)

    assert seen(volume / "fifo") == (GROUP, "0o660")
