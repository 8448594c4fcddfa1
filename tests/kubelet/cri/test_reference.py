"""Names of images."""

from __future__ import annotations

import pytest

from services.common.errors import Code
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.reference import candidates, complete, parse

DIGEST = "sha256:" + "a1" * 32
HEX = "b2" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        pytest.param("busybox", "docker.io/library/busybox:latest", id="short"),
        pytest.param("busybox:1.36", "docker.io/library/busybox:1.36", id="tag"),
        pytest.param("user/app", "docker.io/user/app:latest", id="of-a-user"),
        pytest.param("docker.io/busybox", "docker.io/library/busybox:latest", id="hub"),
        pytest.param("index.docker.io/library/busybox", "docker.io/library/busybox:latest", id="hubs-index"),
        pytest.param("localhost/app", "localhost/app:latest", id="localhost"),
        pytest.param("localhost:5000/app", "localhost:5000/app:latest", id="a-port-is-no-tag"),
        pytest.param("[::1]:5000/app:2", "[::1]:5000/app:2", id="ipv6"),
        pytest.param("registry.example/a/b/c:v1", "registry.example/a/b/c:v1", id="deep"),
        pytest.param("Registry/app", "Registry/app:latest", id="capitals-are-a-hosts"),
        pytest.param(f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", id="digest"),
        pytest.param(f"r.example/a:1@{DIGEST}", f"r.example/a@{DIGEST}", id="the-digest-counts-alone"),
        pytest.param("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest", id="separators"),
    ],
)
def test_a_name_is_completed(text: str, full: str) -> None:
    """And a complete name stays as it is."""
    assert str(parse(text)) == full
    assert str(parse(full)) == full
    assert complete(text) == full


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "@", "a:", "App", "a b", "a//b", "/a", "a/", "-a", "a..b", "a___b", "a:b:c", "a:-x"),
        *("a@sha256:1", "a@md5:" + "0" * 32, "a@" + DIGEST.upper(), f"a@{DIGEST}@{DIGEST}", "a\n", "a:1\n"),
        *("sha256:" + HEX, HEX, "x" * 256, "r.example:port/a", "a:" + "t" * 129, "ä"),
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """With what a name looks like."""
    with pytest.raises(CriError) as refused:
        parse(text)

    assert (refused.value.code, refused.value.reason) == (Code.INVALID_ARGUMENT, "IMAGE_NAME_INVALID")
    assert complete(text) == text


@pytest.mark.parametrize(
    ("text", "looked_up"),
    [
        pytest.param(f"sha256:{HEX}", (f"sha256:{HEX}",), id="id"),
        pytest.param(HEX, (f"sha256:{HEX}",), id="bare-id"),
        pytest.param("app", ("docker.io/library/app:latest",), id="name"),
        pytest.param("cafe", ("docker.io/library/cafe:latest", "cafe"), id="name-or-part-of-an-id"),
        pytest.param("sha256:cafe", ("docker.io/library/sha256:cafe", "cafe"), id="part-of-an-id"),
        pytest.param("NOT A NAME", (), id="nothing"),
    ],
)
def test_a_name_comes_before_a_part_of_an_id(text: str, looked_up: tuple[str, ...]) -> None:
    """As the engine has it."""
    assert candidates(text) == looked_up
