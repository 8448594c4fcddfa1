"""What an image must not ask for."""

from __future__ import annotations

from typing import Any

import pytest

from services.kubelet.cri import imagecheck
from services.kubelet.cri.errors import CriError


def image(**config: Any) -> dict[str, Any]:
    """Write what the engine tells of an image."""
    return {"Id": "sha256:1", "RepoTags": ["app:1"], "Config": config}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"WorkingDir": "/proc/self/fd/7"}, id="a-descriptor"),
        pytest.param({"WorkingDir": "/srv/../proc/self/fd/7"}, id="a-descriptor-roundabout"),
        pytest.param({"WorkingDir": "//proc//self"}, id="two-slashes"),
        pytest.param({"WorkingDir": "proc/1"}, id="relative"),
        pytest.param({"Volumes": {"/proc": {}}}, id="a-volume-over-proc"),
        pytest.param({"Volumes": {"/data": {}, "/sys/fs/cgroup": {}}}, id="a-volume-in-sys"),
        pytest.param({"Volumes": {"/x/..": {}}}, id="a-volume-over-everything"),
        pytest.param({"Labels": {"a": "x" * (1 << 20)}}, id="labels-without-end"),
    ],
)
def test_what_an_engine_may_fall_for_is_refused(config: dict[str, Any]) -> None:
    """With the image's name and the reason."""
    with pytest.raises(CriError, match="app:1 is refused") as caught:
        imagecheck.check(image(**config), "")

    assert caught.value.reason == "IMAGE_REFUSED"


@pytest.mark.parametrize("config", [{}, {"WorkingDir": "/process", "Volumes": {"/etc": {}, "/devices": {}}}])
def test_what_is_unusual_is_none_the_less_allowed(config: dict[str, Any]) -> None:
    """Names that begin like the kernel's are no kernel's."""
    imagecheck.check(image(**config), "")
    imagecheck.check({"Id": "sha256:1"}, "")


def test_the_pods_own_working_directory_counts_instead() -> None:
    """It is refused as an image's is, and overrides it."""
    imagecheck.check(image(WorkingDir="/proc/self/fd/7"), "/srv")
    with pytest.raises(CriError):
        imagecheck.check(image(), "/proc/self/fd/7")
