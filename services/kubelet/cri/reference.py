"""Names of images: read, completed, compared. Pure.

Source: the grammar of github.com/distribution/reference, which every registry's client
follows. A name without a registry is Docker Hub's, one without a tag means `latest`,
and where a name has a tag and a digest the digest alone counts.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

from services.common.errors import Code
from services.kubelet.cri.errors import CriError

HUB = "docker.io"
_HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_DEFAULT_TAG = "latest"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_SHORT_ID = re.compile(r"[0-9a-f]{4,63}")
_NAME_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete name: `tag` or `digest` is set, never both."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """The name without its tag or digest."""
        return f"{self.host}/{self.path}"

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def parse(text: str) -> Reference:
    """Read a name. Raises IMAGE_NAME_INVALID, also for an id: that names no repository."""
    name, at, digest = text.partition("@")
    repository, tag = _split_tag(name)
    host, path = _split_host(repository)
    if _ID.fullmatch(text) or not _PATH.fullmatch(path) or len(repository) > _NAME_LIMIT:
        raise _unreadable(text)
    if not _HOST.fullmatch(host) or (tag is not None and not _TAG.fullmatch(tag)):
        raise _unreadable(text)
    if at and not _DIGEST.fullmatch(digest):
        raise _unreadable(text)
    return Reference(host, path, digest=digest) if at else Reference(host, path, tag=tag or _DEFAULT_TAG)


def complete(text: str) -> str:
    """Write a name in full; what is no name stays as it is."""
    try:
        return str(parse(text))
    except CriError:
        return text


def candidates(text: str) -> tuple[str, ...]:
    """Return what to look an image up by, in order: its id, or its full name and then a part of an id."""
    if whole := _ID.fullmatch(text):
        return (f"sha256:{whole[1]}",)
    found = []
    with suppress(CriError):
        found.append(str(parse(text)))
    short = text.removeprefix("sha256:")
    return (*found, short) if _SHORT_ID.fullmatch(short) else tuple(found)


def hub_or(host: str) -> str:
    """Return the one name of a registry that has several."""
    return HUB if host.lower() in _HUB_NAMES else host.lower()


def _split_tag(name: str) -> tuple[str, str | None]:
    before, colon, after = name.rpartition(":")
    return (before, after) if colon and "/" not in after else (name, None)


def _split_host(repository: str) -> tuple[str, str]:
    first, slash, rest = repository.partition("/")
    named = slash and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower())
    host, path = (first, rest) if named else (HUB, repository)
    if host in _HUB_NAMES:
        return HUB, path if "/" in path else f"library/{path}"
    return host, path


def _unreadable(text: str) -> CriError:
    return CriError(
        f"InvalidImageName: {text!r} is no name of an image; it should look like "
        "registry.example/path/name:tag or name@sha256:DIGEST",
        code=Code.INVALID_ARGUMENT,
        reason="IMAGE_NAME_INVALID",
        metadata={"image": text},
    )
