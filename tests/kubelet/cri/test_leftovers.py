"""What a killed engine left of a container's cgroups goes; what is in use stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kubelet.cri.leftovers import remove_cgroups

ID, OTHER = "a1" * 32, "b2" * 32


@pytest.fixture(params=["v1", "v2"])
def trees(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Lay out folders as the kernel's trees."""
    if request.param == "v2":
        (tmp_path / "cgroup.controllers").touch()
        return [tmp_path]
    made = [tmp_path / name for name in ("cpu,cpuacct", "memory", "unified")]
    for tree in made:
        tree.mkdir()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    return made


def test_empty_cgroups_go_from_every_tree_and_every_parent(trees: list[Path], tmp_path: Path) -> None:
    """Those of others stay, and a second call finds nothing."""
    for tree in trees:
        for path in (f"docker/{ID}", f"docker/{OTHER}", f"kubepods/pod7/{ID}"):
            (tree / path).mkdir(parents=True)

    assert remove_cgroups(ID, ["docker", "/kubepods/pod7"], tmp_path) == 2 * len(trees)
    assert remove_cgroups(ID, ["docker", "/kubepods/pod7"], tmp_path) == 0
    assert all((tree / "docker" / OTHER).is_dir() for tree in trees)


def test_a_cgroup_in_use_stays(trees: list[Path], tmp_path: Path) -> None:
    """What is not empty cannot be removed; here a child stands for a process."""
    for tree in trees:
        (tree / "docker" / ID / "child").mkdir(parents=True)

    assert remove_cgroups(ID, ["docker"], tmp_path) == 0
    assert all((tree / "docker" / ID / "child").is_dir() for tree in trees)


@pytest.mark.parametrize("name", ["", "..", "a1", f"../{'a' * 61}", "a" * 63 + "/"])
def test_what_is_no_full_id_names_nothing(trees: list[Path], tmp_path: Path, name: str) -> None:
    """A part of an id, or a path, removes no folder."""
    for tree in trees:
        (tree / "docker").mkdir()

    assert remove_cgroups(name, ["docker"], tmp_path) == 0
    assert all((tree / "docker").is_dir() for tree in trees)
