"""Small reads that may fail: a file, a command. Nothing here raises."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cli.doctor.facts import FileFacts, Space

_COMMAND_SECONDS = 5.0
_PLACES = "/usr/local/sbin:/usr/sbin:/sbin"


def text(path: str | Path) -> str | None:
    """Read a small file; None when it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def number(path: str | Path) -> int | None:
    """Read a file that holds a number."""
    found = text(path)
    return int(found) if found is not None and found.lstrip("-").isdigit() else None


def program(name: str) -> str | None:
    """Find a program, also where only root's PATH leads."""
    return shutil.which(name) or shutil.which(name, path=_PLACES)


def output(words: Sequence[str], *, limit_seconds: float = _COMMAND_SECONDS) -> str | None:
    """Run a command within some seconds; None when it is not there or fails."""
    found = program(words[0])
    if found is None:
        return None
    try:
        ended = subprocess.run(
            [found, *words[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.decode(errors="replace").strip() if ended.returncode == 0 else None


def file(path: Path) -> FileFacts | None:
    """Return mode, owner and group; None when the path cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileFacts(str(path), stat.S_IMODE(found.st_mode), _user(found.st_uid), group(found.st_gid))


def _user(number_: int) -> str:
    try:
        return pwd.getpwuid(number_).pw_name
    except KeyError:
        return str(number_)


def group(number_: int) -> str:
    """Return a group's name, or its number."""
    try:
        return grp.getgrgid(number_).gr_name
    except KeyError:
        return str(number_)


def space(path: Path) -> Space | None:
    """Return the room of the file system that holds `path`, for those who are not root."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def socket_path(address: str) -> Path | None:
    """Return the path of a `unix://` address; None for any other."""
    return Path(address.removeprefix("unix://")) if address.startswith("unix://") else None
