"""How people name objects: `pod/web`, `pods`, `svc web`, `deploy/web` (refused)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cli.errors import CliError, Exit

KINDS = {
    "pod": "Pod",
    "pods": "Pod",
    "po": "Pod",
    "service": "Service",
    "services": "Service",
    "svc": "Service",
    "configmap": "ConfigMap",
    "configmaps": "ConfigMap",
    "cm": "ConfigMap",
    "secret": "Secret",
    "secrets": "Secret",
    "serviceaccount": "ServiceAccount",
    "serviceaccounts": "ServiceAccount",
    "sa": "ServiceAccount",
    "namespace": "Namespace",
    "namespaces": "Namespace",
    "ns": "Namespace",
    "node": "Node",
    "nodes": "Node",
    "no": "Node",
    "event": "Event",
    "events": "Event",
    "ev": "Event",
}
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True, slots=True)
class Ref:
    """A kind and perhaps a name."""

    kind: str
    name: str = ""


def kind_of(word: str) -> str:
    """Return the kind that a word means. Raises `CliError` (usage) for an unknown one."""
    kind = KINDS.get(word.lower())
    if kind is None:
        known = "pods, services, configmaps, secrets, serviceaccounts, namespaces, node, events"
        raise CliError(f"Unknown kind {word!r}", code=Exit.USAGE, advice=f"Tripod knows {known}.")
    return kind


def parse(words: Sequence[str]) -> list[Ref]:
    """Read `kind`, `kind name...` or `kind/name...`."""
    if not words:
        raise CliError("Name a kind, such as `pods`, or an object, such as `pod/web`", code=Exit.USAGE)
    if "/" in words[0]:
        return [_slashed(word) for word in words]
    kind = kind_of(words[0])
    return [Ref(kind, name) for name in words[1:]] or [Ref(kind)]


def one(words: Sequence[str], *, default_kind: str = "Pod") -> Ref:
    """Read one object; a bare name is of `default_kind`."""
    if len(words) == 1 and "/" not in words[0]:
        return Ref(default_kind, words[0])
    refs = parse(words)
    if len(refs) != 1 or not refs[0].name:
        raise CliError("Name one object, such as `pod/web`", code=Exit.USAGE)
    return refs[0]


def _slashed(word: str) -> Ref:
    kind, _, name = word.partition("/")
    if not name:
        raise CliError(f"{word!r} names no object", code=Exit.USAGE)
    return Ref(kind_of(kind), name)


def seconds(text: str) -> float:
    """Read a duration such as `90`, `30s`, `1m30s` or `2h`. Raises `CliError` (usage)."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise CliError(f"{text!r} is no duration", code=Exit.USAGE, advice="Write 30s, 1m30s or 2h.")
    hours, minutes, rest = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest or 0)


def labels(text: str) -> dict[str, str]:
    """Read a selector such as `app=web,tier=front`; only equality is known."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not key or not equals for key, equals, _ in pairs):
        raise CliError(f"{text!r} is no selector", code=Exit.USAGE, advice="Write key=value,key=value.")
    return {key.strip(): value.lstrip("=").strip() for key, _, value in pairs}
