"""Open files below a folder that others can write to: by no link, and nothing but files.

Each part of the path is opened by itself, relative to the one before and without
following links, which is what openat2(2) does under RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS, on every kernel. A file is looked at (O_PATH) before it is opened:
the mere opening of a FIFO may block, and that of a device may do things.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_MODE = 0o755
_FILE_MODE = 0o640


class Refused(OSError):  # noqa: N818  # an `OSError` that we raise ourselves
    """A path leads to something that is not opened; `strerror` says what it is."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.EPERM, what, str(path))


def open_file(root: Path, path: Path, *, append: bool = False, alone: bool = False) -> int:
    """Open the regular file `path` below `root` to read, or to read and append.

    Appending makes the file and its folders where they are missing. `alone` refuses a
    file of several names or of another owner: such a name may have been laid there to
    have us show or change another file. The caller closes the descriptor.

    Raises `Refused`, `OSError`.
    """
    folder, name = _folder_of(root, path, make=append)
    try:
        return _open(path, folder, name, append=append, alone=alone)
    finally:
        os.close(folder)


def _open(path: Path, folder: int, name: str, *, append: bool, alone: bool) -> int:
    flags = (os.O_RDWR | os.O_APPEND if append else os.O_RDONLY) | os.O_CLOEXEC
    if append:
        with suppress(FileExistsError):
            return os.open(name, flags | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=folder)
    seen = os.open(name, _LOOK, dir_fd=folder)
    try:
        if what := fault(os.fstat(seen), alone=alone):
            raise Refused(path, what)
        return os.open(f"/proc/self/fd/{seen}", flags)
    finally:
        os.close(seen)


def _folder_of(root: Path, path: Path, *, make: bool) -> tuple[int, str]:
    if not path.is_relative_to(root) or ".." in path.parts or path == root:
        raise Refused(path, f"is not below {root}")
    *parents, name = path.relative_to(root).parts
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parents:
        try:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, _FOLDER_MODE, dir_fd=folder)
            below = os.open(part, _LOOK | os.O_DIRECTORY, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder, name


def fault(found: os.stat_result, *, alone: bool) -> str:
    """Say why a file is not opened; nothing when it may be."""
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISREG(found.st_mode):
        return "is no regular file"
    if alone and found.st_nlink != 1:
        return "has another name, too (a hard link)"
    if alone and found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    return ""
