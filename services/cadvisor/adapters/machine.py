"""Facts of the machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from services.cadvisor.core import procfs
from services.cadvisor.core.flatfile import number
from services.cadvisor.core.model import CgroupLayout, Machine


def read(proc: Path, layout: CgroupLayout) -> Machine:
    """Read the facts; what cannot be read is empty."""
    memory = procfs.memory_info(_bytes(proc / "meminfo"))
    return Machine(
        cpu_count=os.cpu_count() or 1,
        memory_bytes=memory.get("MemTotal", 0),
        swap_bytes=memory.get("SwapTotal", 0),
        kernel_version=platform.release(),
        os_image=_os_image(),
        machine_id=_bytes(Path("/etc/machine-id")).decode(errors="replace").strip(),
        boot_id=_bytes(proc / "sys/kernel/random/boot_id").decode(errors="replace").strip(),
        boot_time=_boot_time(_bytes(proc / "stat")),
        layout=layout,
    )


def _boot_time(content: bytes) -> datetime | None:
    for line in content.splitlines():
        if line.startswith(b"btime "):
            seconds = number(line[6:])
            return datetime.fromtimestamp(seconds, UTC) if seconds < 1 << 40 else None
    return None


def _os_image() -> str:
    for line in _bytes(Path("/etc/os-release")).decode(errors="replace").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
