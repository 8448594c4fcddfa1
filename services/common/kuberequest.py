"""What can be asked of a Kubernetes API server, as values: resources, selections, paths. Pure.

Source: Kubernetes API concepts, "Resource URIs" and "Efficient detection of changes".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import quote

Json = Mapping[str, Any]
LIST_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object, such as `Resource("v1", "nodes", namespaced=False)`."""

    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of a collection, of an object, or of a part of an object."""
        root = f"/apis/{self.version}" if "/" in self.version else f"/api/{self.version}"
        within = ["namespaces", namespace] if self.namespaced and namespace else []
        parts = [*within, self.plural, *filter(None, (name, subresource))]
        return "/".join([root, *(quote(part, safe="") for part in parts)])


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a resource: of one namespace or ("") of all, that match both selectors."""

    resource: Resource
    namespace: str = ""
    label_selector: str = ""
    field_selector: str = ""

    def parameters(self) -> dict[str, str]:
        """Return the query parameters."""
        given = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {name: value for name, value in given.items() if value}

    def __str__(self) -> str:
        return self.resource.plural


class PatchType(Enum):
    """How a patch is read."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    JSON = "application/json-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Page:
    """One part of a list; `next_token` asks for the one after it, "" after the last."""

    items: tuple[Json, ...]
    revision: str
    next_token: str = ""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, with the object; OPENED is ours."""

    type: str
    object: Json


def delete_options(grace_seconds: int | None, uid: str, revision: str) -> dict[str, Any]:
    """Write `DeleteOptions`: the grace, and what must hold of the object for it to be deleted."""
    options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    conditions = {"uid": uid, "resourceVersion": revision}
    if given := {name: value for name, value in conditions.items() if value}:
        options["preconditions"] = given
    return options


class Lines:
    """Splits a stream of bytes into lines, which may be long. Raises `ValueError` past `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the lines that they complete, the empty ones left out."""
        *complete, rest = data.split(b"\n")
        if complete:
            complete[0] = b"".join([*self._parts, complete[0]])
            self._parts, self._size = [], 0
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > self._limit:
            raise ValueError(f"a line of more than {self._limit} bytes")
        return [line for line in complete if line.strip()]
