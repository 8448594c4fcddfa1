"""See that a path of the host is what a hostPath volume says, and make what it wants made.

Source: Kubernetes "hostPath volume types". For the calling thread, which must see the host's files.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_KINDS = {
    "Directory": (stat.S_ISDIR, "a directory"),
    "DirectoryOrCreate": (stat.S_ISDIR, "a directory"),
    "File": (stat.S_ISREG, "a file"),
    "FileOrCreate": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a socket"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}
_FOLDER_MODE, _FILE_MODE = 0o755, 0o644


def check(path: str, kind: str) -> None:
    """Make and check one path; without a kind anything will do. Raises `OSError`."""
    place = Path(path)
    if kind == "DirectoryOrCreate" and not place.exists():
        _make_folders(place)
    if kind == "FileOrCreate" and not place.exists():
        _make_file(place)
    if kind:
        is_kind, what = _KINDS[kind]
        if not is_kind(_mode(place)):
            raise OSError(0, f"is not {what}", path)


def _mode(place: Path) -> int:
    try:
        return place.stat().st_mode
    except FileNotFoundError as error:
        raise OSError(error.errno, "does not exist", str(place)) from error


def _make_folders(place: Path) -> None:
    """Make a folder and those above it; the file mode mask of the kubelet counts for nothing."""
    for folder in (*reversed(place.parents), place):
        with suppress(FileExistsError):
            folder.mkdir(_FOLDER_MODE)
            folder.chmod(_FOLDER_MODE)


def _make_file(place: Path) -> None:
    """Make an empty file; its folder must be there, as in Kubernetes."""
    with suppress(FileExistsError):
        number = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        os.fchmod(number, _FILE_MODE)
        os.close(number)
