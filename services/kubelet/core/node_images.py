"""Which images a node says that it has. Pure.

The largest 50, with at most five names of each. Those without a name, as builds leave them, are not told: no
pod asks for one, and they would take the places of others. The order is the same whenever the images are, so
that nothing is told again for it.

Source: the kubelet's `nodestatus/setters.go`, `Images`; `nodeStatusMaxImages` of its configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_IMAGES = 50
_NAMES = 5


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the runtime; `digests` and `tags` are whole names."""

    id: str
    size_bytes: int
    digests: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that a node tells; none for an image that nobody has named."""
        return (*sorted(self.digests), *sorted(self.tags))[:_NAMES]


def largest(images: Iterable[Image]) -> tuple[Image, ...]:
    """Return the images that a node tells, the largest first."""
    named = [image for image in images if image.names]
    return tuple(sorted(named, key=lambda image: (image.size_bytes, image.id), reverse=True)[:_IMAGES])
