"""Removing a pod's folder, in which the pod and others may have laid anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.kubelet.adapters.removal import remove_tree
from services.kubelet.core.model import PodUid
from tests.lab.pod_files import disk_files


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """Bind a folder or file onto another for a block."""
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)


@pytest.mark.netns
@pytest.mark.fault("F51")
@pytest.mark.asyncio
async def test_a_mount_below_a_pod_is_never_emptied(tmp_path: Path) -> None:
    """Of the same file system, too. All else goes; the rest goes when the mount has gone."""
    canary = tmp_path / "canary"
    (canary / "below").mkdir(parents=True)
    (canary / "below/alive").write_text("alive")
    volume = tmp_path / "pods/uid/volumes/data"
    for name in ("mounted/x", "other/y"):
        (volume / name).mkdir(parents=True)
    (volume / "file").touch()
    files = disk_files(tmp_path)
    with bound(canary, volume / "mounted"), bound(canary / "below/alive", volume / "file"):
        await files.remove(PodUid("uid"))

        assert (canary / "below/alive").read_text() == "alive"
        assert sorted(path.name for path in volume.iterdir()) == ["file", "mounted"]
        assert remove_tree(tmp_path / "pods/uid") == {
            "uid/volumes/data/file": "Device or resource busy",
            "uid/volumes/data/mounted": "is a mount",
        }
    await files.remove(PodUid("uid"))

    assert (canary / "below/alive").read_text() == "alive"
    assert await files.known() == set()


@pytest.mark.netns
@pytest.mark.fault("F51")
def test_a_pod_folder_that_is_a_mount_is_left(tmp_path: Path) -> None:
    """The whole of it may be somebody else's."""
    canary, pod = tmp_path / "canary", tmp_path / "pods/uid"
    canary.mkdir()
    pod.mkdir(parents=True)
    (canary / "alive").touch()
    with bound(canary, pod):
        assert remove_tree(pod) == {"uid": "is a mount"}
        assert (canary / "alive").exists()


@pytest.mark.fault("F51")
def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    """To a file, to a folder, to nowhere; hard links and FIFOs, too."""
    canary, pod = tmp_path / "canary", tmp_path / "pods/uid"
    canary.mkdir()
    pod.mkdir(parents=True)
    (canary / "alive").write_text("alive")
    (pod / "folder").symlink_to(canary)
    (pod / "file").symlink_to(canary / "alive")
    (pod / "nowhere").symlink_to("/nowhere")
    (pod / "hard").hardlink_to(canary / "alive")
    os.mkfifo(pod / "fifo")

    assert remove_tree(pod) == {}
    assert not pod.exists()
    assert (canary / "alive").read_text() == "alive"


@pytest.mark.fault("F51")
def test_a_pod_folder_that_is_a_link_is_left(tmp_path: Path) -> None:
    """Its target is not ours to judge."""
    canary = tmp_path / "canary"
    (canary / "alive").mkdir(parents=True)
    (tmp_path / "uid").symlink_to(canary)

    assert list(remove_tree(tmp_path / "uid")) == ["uid"]
    assert (canary / "alive").exists()


@pytest.mark.fault("F51")
def test_a_folder_deeper_than_any_limit_goes(tmp_path: Path) -> None:
    """Deeper than Python recurses, than descriptors reach, than a path may be long."""
    top = tmp_path / "uid"
    top.mkdir()
    here = os.open(top, os.O_PATH)
    for _ in range(sys.getrecursionlimit() * 3):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    assert remove_tree(top) == {}
    assert not top.exists()


@pytest.mark.netns
@pytest.mark.fault("F51")
def test_what_cannot_be_removed_is_told_and_the_rest_goes(tmp_path: Path) -> None:
    """An immutable file stays, with its folder."""
    pod = tmp_path / "uid"
    (pod / "a").mkdir(parents=True)
    (pod / "b").mkdir()
    (pod / "a/kept").touch()
    (pod / "b/gone").touch()
    made = subprocess.run(["chattr", "+i", str(pod / "a/kept")], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this file system has no immutable files")
    try:
        assert remove_tree(pod) == {"uid/a/kept": "Operation not permitted"}
        assert [path.name for path in pod.iterdir()] == ["a"]
    finally:
        subprocess.run(["chattr", "-i", str(pod / "a/kept")], check=True)


def test_removing_what_is_not_there_succeeds(tmp_path: Path) -> None:
    """A repeated removal is no error."""
    assert remove_tree(tmp_path / "uid") == {}
    assert remove_tree(tmp_path / "no/uid") == {}
