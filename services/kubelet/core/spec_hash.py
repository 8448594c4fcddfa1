"""Tell that a running container is not the one that its pod's spec wants any more. Pure.

Source: the kubelet's `HashContainer`: of a container's spec only the image can change
while its pod lives, so the hash is one of name and image. It is kept as the annotation
`io.kubernetes.container.hash`; a container without one is left alone.
"""

from __future__ import annotations

import json

from services.kubelet.core.model import Container
from services.kubelet.core.observed import ObservedContainer

_OFFSET, _PRIME, _MASK = 0x811C9DC5, 0x01000193, 0xFFFFFFFF


def spec_hash(container: Container) -> str:
    """Return the hash of a container's spec, in hexadecimal: FNV-1a of 32 bits."""
    value = _OFFSET
    for byte in json.dumps([container.name, container.image]).encode():
        value = (value ^ byte) * _PRIME & _MASK
    return f"{value:x}"


def changed(container: Container, seen: ObservedContainer) -> bool:
    """Tell whether an instance was made from another spec."""
    return bool(seen.spec_hash) and seen.spec_hash != spec_hash(container)
