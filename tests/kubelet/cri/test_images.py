"""Images as the CRI has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.kubelet.cri import images
from services.kubelet.cri.imageusage import Usage, usage

DIGEST = "sha256:" + "a1" * 32


def inspected(**more: Any) -> dict[str, Any]:
    """Write what the engine tells of an image."""
    return {"Id": "sha256:1", "RepoTags": ["app:1"], "RepoDigests": [f"app@{DIGEST}"], "Size": 5, **more}


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        pytest.param("", None, "", id="none"),
        pytest.param("1000", 1000, "", id="number"),
        pytest.param("1003:users", 1003, "", id="number-and-group"),
        pytest.param("www-data", None, "www-data", id="name"),
        pytest.param("www-data:100", None, "www-data", id="name-and-group"),
        pytest.param("0", 0, "", id="root"),
        pytest.param("00", 0, "", id="zeros"),
        pytest.param("2147483647", 2147483647, "", id="the-largest"),
        pytest.param("2147483648", None, "2147483648", id="one-more"),
        pytest.param("4294967296", None, "4294967296", id="would-wrap-to-root"),
        pytest.param("²", None, "²", id="no-ascii-digit"),
        *(pytest.param(odd, None, odd, id=repr(odd)) for odd in ("9" * 26, "+0", " 0", "1e0", "-1")),
    ],
)
def test_a_user_is_a_number_or_else_a_name(user: str, uid: int | None, name: str) -> None:
    """A number that does not fit breaks nothing, and is no number."""
    made = images.image(inspected(), user=user)

    assert (made.uid.value if made.HasField("uid") else None, made.username) == (uid, name)


def test_names_are_told_in_full_and_once() -> None:
    """What has no name is told without."""
    tags = ["app:1", "docker.io/library/app:1", "<none>:<none>", "r.example:5000/app:2"]
    made = images.image(inspected(RepoTags=tags, RepoDigests=[f"app@{DIGEST}", "<none>@<none>"]), user="")
    bare = images.image({"Id": "sha256:1", "RepoTags": None, "RepoDigests": None, "Size": 0}, user="")

    assert list(made.repo_tags) == ["docker.io/library/app:1", "r.example:5000/app:2"]
    assert list(made.repo_digests) == [f"docker.io/library/app@{DIGEST}"]
    assert (list(bare.repo_tags), list(bare.repo_digests)) == ([], [])
    assert (made.id, made.spec.image, made.size, bare.size) == ("sha256:1", "sha256:1", 5, 1)


def test_the_pause_image_is_pinned() -> None:
    """By whichever form of its name."""
    assert images.image(inspected(), user="", pinned="app:1").pinned
    assert images.image(inspected(), user="", pinned="docker.io/library/app:1").pinned
    assert not images.image(inspected(), user="", pinned="app:2").pinned
    assert not images.image(inspected(RepoTags=[]), user="", pinned="").pinned


def test_annotations_are_those_of_the_manifest() -> None:
    """Which an engine tells from API 1.48 on."""
    made = images.image(inspected(Descriptor={"annotations": {"a": "b"}}), user="")

    assert dict(made.spec.annotations) == {"a": "b"}


def test_a_verbose_status_tells_the_configuration() -> None:
    """As JSON that crictl shows."""
    config = {"User": "7", "Labels": {"who": "me"}, "Cmd": ["sh"], "Volumes": None}
    told = json.loads(images.info(inspected(Config=config, Os="linux"))["info"])

    assert told["imageSpec"]["config"] == {"User": "7", "Labels": {"who": "me"}, "Cmd": ["sh"]}
    assert (told["labels"], told["size"], told["imageSpec"]["os"]) == ({"who": "me"}, 5, "linux")
    assert json.loads(images.info({"Id": "sha256:1"})["info"])["labels"] == {}


def test_an_ended_container_needs_no_image() -> None:
    """Others of another image neither."""
    rows = [
        {"Id": "1" * 64, "Names": ["/one"], "ImageID": "sha256:1", "State": "running"},
        {"Id": "2" * 64, "Names": ["/two"], "ImageID": "sha256:1", "State": "exited"},
        {"Id": "3" * 64, "Names": ["/three"], "ImageID": "sha256:2", "State": "running"},
        {"Id": "4" * 64, "Names": [], "ImageID": "sha256:1", "State": "created"},
    ]

    assert images.users("sha256:1", rows) == ["one", "4" * 12]


def test_usage_is_what_the_engine_counts() -> None:
    """Layers once; where it does not count them, what images have."""
    rows = {"Images": [{"Size": 3}, {"Size": 4}], "Containers": [{"SizeRw": 2}, {}]}

    assert usage({**rows, "LayersSize": 5}) == Usage(5, 2)
    assert usage(rows) == Usage(7, 2)
    assert usage({"LayersSize": 0, "Containers": None}) == Usage(0, 0)
