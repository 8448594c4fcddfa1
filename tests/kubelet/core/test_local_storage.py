"""A pod ends that takes more of the disk than it may."""

from __future__ import annotations

import pytest

from services.kubelet.core import local_storage
from services.kubelet.core.local_storage import Taken
from services.kubelet.core.model import Container, EmptyDir, HostPath, Pod, Resources, Volume
from tests.builders import a_container, a_pod

MI = 1 << 20


def limited(name: str, mebibytes: int) -> Container:
    """Make a container that may take so much."""
    limits = (("ephemeral-storage", mebibytes * MI),)
    return a_container(name=name, resources=Resources(other_limits=limits))


def with_volume(source: EmptyDir | HostPath, *containers: Container) -> Pod:
    """Make a pod with one volume."""
    return a_pod(*containers, volumes=(Volume("data", source),))


SIZED = with_volume(EmptyDir(size_limit_bytes=10 * MI))
BOTH = a_pod(limited("a", 10), limited("b", 20))


@pytest.mark.parametrize(
    ("pod", "containers", "empty_dirs", "words"),
    [
        pytest.param(SIZED, {}, {"data": 10 * MI}, "", id="a-full-volume"),
        pytest.param(
            SIZED, {}, {"data": 10 * MI + 1}, 'EmptyDir volume "data" exceeds the limit "10Mi"', id="beyond"
        ),
        pytest.param(BOTH, {"a": 10 * MI, "b": 20 * MI}, {}, "", id="full-containers"),
        pytest.param(
            BOTH,
            {"a": 11 * MI},
            {},
            "Container a exceeded its local ephemeral storage limit",
            id="one-beyond",
        ),
        pytest.param(
            BOTH,
            {"a": 10 * MI, "b": 21 * MI},
            {},
            "exceeds the total limit of containers 30Mi",
            id="together",
        ),
        pytest.param(
            with_volume(EmptyDir(), limited("app", 10)),
            {"app": 1 * MI},
            {"data": 10 * MI},
            "exceeds the total limit of containers 10Mi",
            id="volumes-count-for-the-pod",
        ),
        pytest.param(a_pod(), {"app": 1 << 50}, {"data": 1 << 50}, "", id="no-limit"),
    ],
)
def test_a_pod_is_over_what_it_may_take(
    pod: Pod, containers: dict[str, int], empty_dirs: dict[str, int], words: str
) -> None:
    """As the original says it."""
    found = local_storage.over(pod, Taken(containers, empty_dirs))

    assert (found is not None) is bool(words)
    assert found is None or (found.reason == "Evicted" and words in found.message)


@pytest.mark.parametrize(
    ("pod", "measured", "volumes"),
    [
        (a_pod(), False, ()),
        (BOTH, True, ()),
        (SIZED, True, ("data",)),
        (with_volume(EmptyDir()), False, ("data",)),
        (with_volume(EmptyDir(memory=True, size_limit_bytes=1)), False, ()),
        (with_volume(HostPath("/x")), False, ()),
    ],
)
def test_only_what_is_limited_is_measured(pod: Pod, measured: bool, volumes: tuple[str, ...]) -> None:
    """A volume in memory is held to its size by the kernel, a path of the host is nobody's."""
    assert local_storage.is_limited(pod) is measured
    assert local_storage.on_disk(pod) == volumes
