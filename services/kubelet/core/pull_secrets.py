"""Which credentials of a pod's pull secrets are for an image's registry. Pure.

Source: the kubelet's credential keyring: a key is a host, perhaps with a port, a path and
`*` within a part of the host; the most specific key comes first, and each is tried.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from services.kubelet.core.model import Secret

_HUB = "docker.io"
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credential:
    """Who asks a registry for an image."""

    username: str = field(repr=False)
    password: str = field(repr=False)


def credentials_for(image: str, secrets: Sequence[Secret]) -> list[Credential]:
    """Return what may be tried for an image, the most specific first; each once."""
    repository = _repository(image)
    found = [
        (key, credential)
        for secret in secrets
        for key, credential in _entries(secret)
        if _matches(key, repository)
    ]
    ordered = sorted(found, key=lambda pair: pair[0], reverse=True)
    return list(dict.fromkeys(credential for _, credential in ordered))


def _repository(image: str) -> str:
    """Return host and path of an image, without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    name = head + slash + last.partition(":")[0]
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return f"{_HUB}/{name}"
    return f"{_HUB}/{rest}" if first in _HUB_NAMES else name


def _entries(secret: Secret) -> Iterator[tuple[str, Credential]]:
    """Yield the keys of a secret with their credentials; what cannot be read is left out."""
    if secret.type == "kubernetes.io/dockerconfigjson":
        auths = _mapping(secret.data.get(".dockerconfigjson", b"")).get("auths")
    elif secret.type == "kubernetes.io/dockercfg":
        auths = _mapping(secret.data.get(".dockercfg", b""))
    else:
        return
    for key, value in auths.items() if isinstance(auths, dict) else ():
        credential = _credential(value) if isinstance(value, dict) else None
        if credential is not None:
            yield _key(key), credential


def _mapping(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _credential(value: Mapping[str, Any]) -> Credential | None:
    if isinstance(value.get("auth"), str) and value["auth"]:
        try:
            name, colon, password = b64decode(value["auth"]).decode().partition(":")
        except ValueError:
            return None
        return Credential(name, password.rstrip("\0")) if colon else None
    user, word = value.get("username"), value.get("password")
    return Credential(user, word) if isinstance(user, str) and isinstance(word, str) else None


def _key(text: str) -> str:
    """Return host and path of a key, which may be a URL with the version of the registry's API."""
    place = text.partition("://")[2] or text
    host, _, path = place.partition("/")
    path = path.removeprefix("v1/").removeprefix("v2/")
    path = "" if path in ("v1", "v2") else path.rstrip("/")
    host = _HUB if host in _HUB_NAMES else host
    return f"{host}/{path}" if path else host


def _matches(key: str, repository: str) -> bool:
    key_host, _, key_path = key.partition("/")
    host, _, path = repository.partition("/")
    key_name, _, key_port = key_host.partition(":")
    name, _, port = host.partition(":")
    key_parts, parts = key_name.split("."), name.split(".")
    same_host = len(key_parts) == len(parts) and key_port == port
    same_host = same_host and all(fnmatchcase(p, k) for p, k in zip(parts, key_parts, strict=True))
    return same_host and path.startswith(key_path)
