"""Remove a folder that others wrote to: across no mount, along no link, however deep.

`shutil.rmtree` walks into a bind mount and empties what is mounted (CVE-2017-1002102
was of that kind). Here every folder is opened relative to its parent, and one that lies
on another mount is left, with all that holds it. A folder too deep for our descriptors
is moved to the top and removed from there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH_LIMIT = 32


def remove_tree(path: Path) -> dict[str, str]:
    """Remove a folder; returns what had to be left, each with the reason. A link is left, too."""
    try:
        parent = os.open(path.parent, _OPEN_FOLDER)
    except FileNotFoundError:
        return {}
    try:
        return _Remover(parent, path.name).run()
    finally:
        os.close(parent)


class _Remover:
    """Removes one folder of a parent."""

    def __init__(self, parent: int, name: str) -> None:
        self._parent = parent
        self._name = name
        self._top = -1
        self._mount = ""
        self._moved = 0
        self._progress = False
        self._left: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        try:
            self._top = os.open(self._name, _OPEN_FOLDER, dir_fd=self._parent)
        except FileNotFoundError:
            return {}
        except OSError as error:
            return {self._name: error.strerror or str(error)}
        try:
            self._mount = _mount_of(self._parent)
            if _mount_of(self._top) != self._mount:
                return {self._name: "is a mount"}
            while True:
                self._left, self._progress = {}, False
                self._empty(self._top, self._name, 0)
                # What was too deep lies at the top now.
                if not self._progress:
                    break
        finally:
            os.close(self._top)
        if not self._left:
            self._try(self._name, partial(os.rmdir, self._name, dir_fd=self._parent))
        return self._left

    def _try(self, where: str, act: Callable[[], object]) -> None:
        try:
            act()
        except FileNotFoundError:
            return
        except OSError as error:
            self._left[where] = error.strerror or str(error)

    def _empty(self, folder: int, where: str, depth: int) -> None:
        for name in os.listdir(folder):
            place = f"{where}/{name}"
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    self._try(place, partial(self._folder, folder, name, place, depth + 1))
                else:
                    self._try(place, partial(os.unlink, name, dir_fd=folder))

    def _folder(self, parent: int, name: str, where: str, depth: int) -> None:
        below = os.open(name, _OPEN_FOLDER, dir_fd=parent)
        try:
            if _mount_of(below) != self._mount:
                self._left[where] = "is a mount"
                return
            if depth >= _DEPTH_LIMIT:
                self._moved += 1
                os.rename(name, f".deep-{self._moved}", src_dir_fd=parent, dst_dir_fd=self._top)
                self._progress = True
                return
            self._empty(below, where, depth)
        finally:
            os.close(below)
        if not any(left.startswith(f"{where}/") for left in self._left):
            os.rmdir(name, dir_fd=parent)


def _mount_of(folder: int) -> str:
    """Return the id of the mount that an open folder lies on: two mounts may share a device."""
    for line in Path(f"/proc/self/fdinfo/{folder}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return line
    raise OSError("the kernel does not tell mounts apart")
