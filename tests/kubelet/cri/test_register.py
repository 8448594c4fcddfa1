"""The register of our containers: what a restart still knows of them."""

from __future__ import annotations

from pathlib import Path

from services.kubelet.cri.register import Register

ID, OTHER = "a1" * 32, "b2" * 32


def opened(folder: Path) -> Register:
    """Open a register as a start of the server does."""
    register = Register(folder, "node")
    register.open()
    return register


def test_a_restart_knows_where_the_cgroups_of_a_container_lie(tmp_path: Path) -> None:
    """Even of one that the engine has forgotten by then: a caller may have named any parent."""
    first = opened(tmp_path)
    first.add(ID, "/kubepods/burstable/pod7")
    first.add(OTHER)

    again = opened(tmp_path)

    assert again.cgroup_parent(ID) == "/kubepods/burstable/pod7"
    assert again.cgroup_parent(OTHER) == ""
    again.remove(ID)
    assert frozenset({OTHER}) == opened(tmp_path).ids()
    assert again.cgroup_parent(ID) == ""


def test_a_file_that_a_kill_left_empty_still_registers_its_container(tmp_path: Path) -> None:
    """Nothing is known of its parent then; the container is ours all the same."""
    opened(tmp_path)
    (tmp_path / "register" / ID).touch()

    assert frozenset({ID}) == opened(tmp_path).ids()
