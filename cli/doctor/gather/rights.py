"""Read what this user may do, and what the engine may."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from cli.doctor.facts import RightsFacts
from cli.doctor.gather import host

_SYS_RESOURCE = 24


def gather(address: str) -> RightsFacts:
    """Look at this user's rights."""
    path = host.socket_path(address)
    seen = host.file(path) if path else None
    user = _name()
    return RightsFacts(
        user=user,
        root=os.geteuid() == 0,
        engine_socket=str(path or address),
        engine_group=seen.group if seen else "",
        in_group=_member(user, seen.group) if seen else False,
        reaches_engine=path is not None and os.access(path, os.R_OK | os.W_OK),
        resource_capability=_resource(),
    )


def _name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _member(user: str, group: str) -> bool:
    """Tell whether the files list a user in a group, whether this process has it or not."""
    try:
        return user in grp.getgrnam(group).gr_mem
    except KeyError:
        return False


def _resource() -> bool | None:
    """Tell whether the engine (else the first process) may have CAP_SYS_RESOURCE."""
    status = host.text(f"/proc/{_engine() or 1}/status")
    bounding = next((line for line in (status or "").splitlines() if line.startswith("CapBnd:")), "")
    return bool(int(bounding.split()[1], 16) >> _SYS_RESOURCE & 1) if bounding else None


def _engine() -> int | None:
    folders = (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())
    return next((int(folder.name) for folder in folders if host.text(folder / "comm") == "dockerd"), None)
