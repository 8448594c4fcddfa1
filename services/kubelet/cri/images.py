"""The engine's images as CRI messages. Pure.

The id of an image is the engine's `Id` in every answer, from the pull to the status of
a container: the CRI asks for one and the same. Names are written in full.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.reference import complete

Json = Mapping[str, Any]
_UID_DIGITS = 10
# Linux takes more; the engine does not.
_MOST_UID = 2**31 - 1


def image(found: Json, *, user: str, pinned: str = "") -> pb.Image:
    """Build an image from an entry of the engine's list, or from all that it tells.

    `user` is the USER of its configuration; `pinned` the name of the image that must stay.
    """
    tags = _names(found.get("RepoTags"))
    annotations = (found.get("Descriptor") or {}).get("annotations") or {}
    made = pb.Image(
        id=found["Id"],
        repo_tags=tags,
        repo_digests=_names(found.get("RepoDigests")),
        # One of no bytes exists (FROM scratch alone), but the CRI wants more than none.
        size=max(1, int(found.get("Size", 0))),
        spec=pb.ImageSpec(image=found["Id"], annotations={str(k): str(v) for k, v in annotations.items()}),
        pinned=bool(pinned) and complete(pinned) in tags,
    )
    uid, made.username = split_user(user)
    if uid is not None:
        made.uid.value = uid
    return made


def user_of(inspected: Json) -> str:
    """Return the USER of an image's configuration."""
    return str((inspected.get("Config") or {}).get("User") or "")


def split_user(user: str) -> tuple[int | None, str]:
    """Read a USER: its number, or else its name. What is no plain number of the engine's range is a name."""
    name = user.partition(":")[0]
    if name.isascii() and name.isdigit() and len(name) <= _UID_DIGITS and int(name) <= _MOST_UID:
        return int(name), ""
    return None, name


def info(inspected: Json) -> dict[str, str]:
    """Tell what a verbose status tells besides, in the form that crictl shows."""
    config = inspected.get("Config") or {}
    layers = inspected.get("RootFS") or {}
    told = {
        "imageSpec": {
            "architecture": inspected.get("Architecture", ""),
            "os": inspected.get("Os", ""),
            "created": inspected.get("Created", ""),
            "author": inspected.get("Author", ""),
            "config": {name: value for name, value in config.items() if value},
            "rootfs": {"type": layers.get("Type", ""), "diff_ids": layers.get("Layers") or []},
        },
        "labels": config.get("Labels") or {},
        "size": int(inspected.get("Size", 0)),
        "storage": (inspected.get("GraphDriver") or {}).get("Name", ""),
    }
    return {"info": json.dumps(told)}


def users(image_id: str, containers: Iterable[Json]) -> list[str]:
    """Name the containers that were made of an image and hold it."""
    return [container_name(item) for item in containers if item["ImageID"] == image_id and holds(item)]


def holds(container: Json) -> bool:
    """Tell whether a container needs its images still: all but those that have ended."""
    return container["State"] not in ("exited", "dead")


def container_name(container: Json) -> str:
    """Name a container of the engine's list."""
    names = container.get("Names")
    return str(names[0]).lstrip("/") if names else str(container["Id"])[:12]


def _names(found: Iterable[str] | None) -> list[str]:
    return list(dict.fromkeys(complete(name) for name in found or () if "<none>" not in name))
