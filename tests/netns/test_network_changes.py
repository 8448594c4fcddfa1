"""Whether anything has changed, told by the kernel."""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from services.kubelet.cri.network.changes import NetworkChanges

pytestmark = pytest.mark.netns
_CLONE_NEWNET = 0x4000_0000


@pytest.fixture
def netns() -> Iterator[str]:
    """Make a network namespace."""
    name = f"tc{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def inside(netns: str, act: Callable[[], None]) -> None:
    """Run something in a thread of the namespace."""
    faults: list[BaseException] = []

    def body() -> None:
        import ctypes

        descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        try:
            assert ctypes.CDLL(None).setns(descriptor, _CLONE_NEWNET) == 0
            act()
        except BaseException as error:
            faults.append(error)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]


@pytest.mark.parametrize(
    "change",
    ["link add br9 type bridge", "link set lo up", "addr add 10.9.9.1/32 dev lo", "link set lo mtu 9000"],
)
def test_each_kind_of_change_moves_the_count(netns: str, change: str) -> None:
    """And when nothing changes, it stays."""

    def act() -> None:
        changes = NetworkChanges()
        changes.open()
        first = changes.count()
        assert changes.count() == first
        subprocess.run(["ip", "-n", netns, *change.split()], check=True)
        assert changes.count() != first
        assert changes.count() == changes.count()
        changes.close()

    inside(netns, act)


def test_without_a_socket_everything_may_have_changed() -> None:
    """So nothing is ever left out by mistake."""
    changes = NetworkChanges()

    assert changes.count() != changes.count()
