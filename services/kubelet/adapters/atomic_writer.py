"""Write the files of a volume so that readers see all of the old ones or all of the new.

As the kubelet's atomic writer does: files lie in a folder with a time in its name,
`..data` is a link to it that a rename swaps, and what people see are links through
`..data`. A kill at any point leaves the old files whole or the new ones; the next write
ends what was begun. Files that say the same already are not written again.

Nobody but us writes in the volume: containers have it read-only.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from services.kubelet.adapters import ownership
from services.kubelet.adapters.removal import remove_tree
from services.kubelet.core.payload import FileContent, Payload

_DATA, _FRESH = "..data", "..data_tmp"
_FOLDER_MODE = 0o755
# What a group that a volume is given to may do with its files.
_GROUP_MODE = 0o440


def write(folder: Path, payload: Payload, stamp: str, *, group: int | None = None) -> bool:
    """Make the volume's files `payload`; tells whether anything changed. Raises `OSError`.

    `stamp` names the new folder. With a `group` the files are given to it, before anybody sees them.
    """
    wanted = dict(payload)
    if group is not None:
        wanted = {name: replace(file, mode=file.mode | _GROUP_MODE) for name, file in payload.items()}
    current = _current(folder)
    if current is not None and _read(folder / current, group) == wanted:
        return _link(folder, payload) | _sweep(folder, current)
    fresh = f"..{stamp}.{secrets.token_hex(4)}"
    _fill(folder / fresh, wanted)
    if group is not None:
        ownership.give(folder / fresh, group, read_only=True)
    with suppress(FileNotFoundError):
        (folder / _FRESH).unlink()
    (folder / _FRESH).symlink_to(fresh)
    (folder / _FRESH).rename(folder / _DATA)
    _link(folder, payload)
    _sweep(folder, fresh)
    return True


def current_folder(folder: Path) -> Path:
    """Return the folder that holds the files now. Raises `OSError` where nothing was written."""
    return folder / (folder / _DATA).readlink()


def has_files(folder: Path) -> bool:
    """Tell whether anything was written to a volume."""
    return _current(folder) is not None


def _current(folder: Path) -> str | None:
    try:
        name = str((folder / _DATA).readlink())
    except OSError:
        return None
    return name if "/" not in name and (folder / name).is_dir() else None


def _read(folder: Path, group: int | None) -> dict[str, FileContent] | None:
    """Read what is there; None where another group has it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        if not stat.S_ISDIR(seen.st_mode):
            if group is not None and seen.st_gid != group:
                return None
            mode = stat.S_IMODE(seen.st_mode)
            found[str(path.relative_to(folder))] = FileContent(path.read_bytes(), mode)
    return found


def _fill(folder: Path, payload: Payload) -> None:
    """Write all files into a new folder, each with its mode before it has its content."""
    folder.mkdir(_FOLDER_MODE)
    folder.chmod(_FOLDER_MODE)
    for name, content in payload.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            with suppress(FileExistsError):
                (folder / parent).mkdir(_FOLDER_MODE)
                (folder / parent).chmod(_FOLDER_MODE)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(number, "wb") as file:
            os.fchmod(file.fileno(), content.mode)
            file.write(content.data)


def _link(folder: Path, payload: Payload) -> bool:
    """Make what people see the first parts of the paths; tells whether anything changed."""
    wanted = {name.split("/")[0] for name in payload}
    present = {path.name for path in folder.iterdir() if not path.name.startswith("..")}
    for name in wanted - present:
        (folder / name).symlink_to(f"{_DATA}/{name}")
    for name in present - wanted:
        (folder / name).unlink()
    return wanted != present


def _sweep(folder: Path, current: str) -> bool:
    """Remove folders that no link leads to any more; tells whether there were any."""
    left = [p.name for p in folder.iterdir() if p.name.startswith("..") and p.name not in (_DATA, current)]
    for name in left:
        if name == _FRESH:
            (folder / name).unlink()
        else:
            remove_tree(folder / name)
    return bool(left)
