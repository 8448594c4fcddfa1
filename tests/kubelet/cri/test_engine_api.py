"""Which Engine API is spoken, and what is refused for want of a newer one."""

from __future__ import annotations

from typing import Any

import pytest

from services.kubelet.cri import engineapi
from services.kubelet.cri.errors import CriError


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        pytest.param("1.12", "1.41", "1.41", id="Debian 12's engine"),
        pytest.param("1.24", "1.50", "1.50", id="in between: all it has"),
        pytest.param("1.44", "1.56", "1.56", id="the newest that is known"),
        pytest.param("1.44", "1.99", "1.56", id="a newer one speaks ours"),
        pytest.param("1.60", "1.99", "1.60", id="one that has given ours up"),
    ],
)
def test_the_newest_common_version_is_spoken(least: str, most: str, expected: str) -> None:
    """Compared as numbers: 1.9 is older than 1.41."""
    assert engineapi.negotiate(least, most) == expected


@pytest.mark.parametrize("most", ["1.40", "1.9"])
def test_an_engine_below_the_floor_is_refused_with_words(most: str) -> None:
    """It says what is needed."""
    with pytest.raises(CriError) as caught:
        engineapi.negotiate("1.1", most)

    assert caught.value.reason == "ENGINE_TOO_OLD"
    assert dict(caught.value.metadata) == {"needed": "1.41", "found": most}


MOUNTS: list[tuple[Any, engineapi.Feature]] = [
    ({"Type": "image"}, engineapi.IMAGE_VOLUMES),
    ({"BindOptions": {"ReadOnlyForceRecursive": True}}, engineapi.RECURSIVE_READ_ONLY),
    ({"BindOptions": {"CreateMountpoint": True}}, engineapi.CREATE_MOUNTPOINT),
    ({"VolumeOptions": {"Subpath": "x"}}, engineapi.VOLUME_SUBPATH),
    ({"TmpfsOptions": {"Options": [["noexec"]]}}, engineapi.TMPFS_OPTIONS),
]
HOSTS: list[tuple[Any, engineapi.Feature]] = [
    ({"Annotations": {"a": "b"}}, engineapi.ANNOTATIONS),
    ({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["x"]}]}, engineapi.CDI_DEVICES),
    *(({"Mounts": [mount]}, feature) for mount, feature in MOUNTS),
]
CASES = [({"HostConfig": host}, feature) for host, feature in HOSTS]


@pytest.mark.parametrize(("config", "feature"), CASES, ids=[feature.name for _, feature in CASES])
def test_what_an_engine_would_ignore_is_refused(
    config: dict[str, object], feature: engineapi.Feature
) -> None:
    """Below its version; from its version on it is sent."""
    with pytest.raises(CriError) as caught:
        engineapi.check(config, "1.41")
    engineapi.check(config, engineapi.written(feature.since))

    assert caught.value.metadata["needed"] == engineapi.written(feature.since)
    assert feature.name in caught.value.message


def test_every_feature_has_a_case() -> None:
    """A line of the table that nothing finds would be no test at all."""
    found = {feature for config, _ in CASES for feature in engineapi.needed(config)}

    assert found == set(engineapi.FEATURES)


def test_what_the_floor_has_is_sent() -> None:
    """An ordinary container."""
    mount = {"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"Propagation": "rprivate"}}

    engineapi.check({"Image": "x", "HostConfig": {"Mounts": [mount], "Annotations": None}}, "1.41")
