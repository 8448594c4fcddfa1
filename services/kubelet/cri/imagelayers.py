"""Find a path in the layers of an image, as an overlay of them would show it.

Images come from strangers: a link leads nowhere outside the layers, and only folders
and regular files are found. The layers must not change meanwhile, which the engine's
never do.
Source: the kernel's Documentation/filesystems/overlayfs.rst on whiteouts (a character
device 0/0), opaque folders and redirects.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

_MOST_LINKS = 40
_OPAQUE = "trusted.overlay.opaque"
_REDIRECT = "trusted.overlay.redirect"


class LayerError(Exception):
    """A path that is not in the image, or is not given out; its text says why."""


def find(layers: Sequence[Path], sub_path: str) -> tuple[Path, ...]:
    """Return the parts of a folder, topmost first, or the one file. Raises `LayerError`, `OSError`."""
    trail: list[tuple[Path, ...]] = [tuple(layers)]
    waiting = sub_path.split("/")[::-1]
    links = 0
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":  # A link's; above the image's root is its root.
            trail = trail[:-1] or trail
            continue
        found, is_folder = _child(trail[-1], part)
        target = _target(found[0])
        if target is not None:
            links += 1
            if links > _MOST_LINKS:
                raise LayerError("has too many symbolic links")
            trail = trail[:1] if target.startswith("/") else trail
            waiting += target.split("/")[::-1]
        elif is_folder:
            trail.append(found)
        elif any(rest not in ("", ".") for rest in waiting):
            raise LayerError("leads through a file")
        else:
            return found
    return trail[-1]


def _child(folders: Sequence[Path], name: str) -> tuple[tuple[Path, ...], bool]:
    """Return what a name is: the parts of a folder, or one other thing."""
    parts: list[Path] = []
    for folder in folders:
        place = folder / name
        try:
            mode = _mode(place)
        except FileNotFoundError:
            continue
        if mode is None:  # A whiteout hides what is below.
            break
        if not stat.S_ISDIR(mode):
            if not parts:
                return (_givable(place, mode),), False
            break
        if _attribute(place, _REDIRECT) is not None:
            raise LayerError("leads through a renamed folder, which these layers keep elsewhere")
        parts.append(place)
        if _attribute(place, _OPAQUE) == b"y":
            break
    if not parts:
        raise LayerError("does not exist in the image")
    return tuple(parts), True


def _mode(place: Path) -> int | None:
    found = place.lstat()
    return None if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0 else found.st_mode


def _givable(place: Path, mode: int) -> Path:
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise LayerError("is neither a folder nor a regular file")
    return place


def _target(place: Path) -> str | None:
    return str(place.readlink()) if place.is_symlink() else None


def _attribute(place: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(place, name, follow_symlinks=False)
    except OSError:
        return None
