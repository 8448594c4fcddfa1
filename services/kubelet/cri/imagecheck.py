"""What an image must not ask for. Pure.

An image is input from strangers. Most of what it can say is harmless or refused by
the engine; this refuses what an engine may fall for, before anything is made of it:
a working directory in /proc may be a leaked descriptor of the host (CVE-2024-21626),
a volume there or over a whole kernel file system breaks what the container is shut
in by, and labels come back with every list of the engine.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from services.common.errors import Code
from services.kubelet.cri.errors import CriError

_KERNEL = ("/proc", "/sys", "/dev")
LABEL_LIMIT_BYTES = 256 << 10


def check(image: Mapping[str, Any], working_directory: str) -> None:
    """See that a container may be made of what the engine tells of an image. Raises IMAGE_REFUSED.

    `working_directory` is the pod's own; "" takes the image's.
    """
    config = image.get("Config") or {}
    directory = working_directory or str(config.get("WorkingDir") or "/")
    if _is_kernels(directory):
        raise _refused(image, f"the working directory {directory!r} is the kernel's")
    for volume in config.get("Volumes") or {}:
        if _is_kernels(volume) or _normal(volume) == "/":
            raise _refused(image, f"it wants a volume at {volume!r}")
    labels = config.get("Labels") or {}
    size = sum(len(name.encode()) + len(str(value).encode()) for name, value in labels.items())
    if size > LABEL_LIMIT_BYTES:
        raise _refused(image, f"its labels have {size} bytes, more than {LABEL_LIMIT_BYTES}")


def _normal(path: str) -> str:
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _is_kernels(path: str) -> bool:
    normal = _normal(path)
    return normal in _KERNEL or normal.startswith(tuple(f"{root}/" for root in _KERNEL))


def _refused(image: Mapping[str, Any], why: str) -> CriError:
    name = next(iter(image.get("RepoTags") or ()), str(image.get("Id", ""))[:19])
    return CriError(
        f"Image {name} is refused: {why}",
        code=Code.FAILED_PRECONDITION,
        reason="IMAGE_REFUSED",
        metadata={"image": name},
    )
