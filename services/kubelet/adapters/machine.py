"""Facts of the machine, from /proc, /etc and the kernel."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from services.kubelet.adapters.engine_space import process_at
from services.kubelet.core.summary import FilesystemUsage, NodeUsage

# As cAdvisor has them, the firmware's and those of virtual machines without one.
_SYSTEM_UUIDS = (
    "/sys/class/dmi/id/product_uuid",
    "/proc/device-tree/system-id",
    "/proc/device-tree/vm,uuid",
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the node is. Memory and disk in bytes."""

    hostname: str
    address: str
    cpu_count: int
    memory_bytes: int
    disk_bytes: int
    kernel_version: str
    os_image: str
    architecture: str
    machine_id: str
    system_uuid: str
    boot_id: str
    swap_bytes: int


def read(state_directory: Path, engine: str = "") -> Machine:
    """Read the facts; what cannot be read is empty.

    A kubelet in a container that has the host's processes finds the host's files by them: by the first one,
    or, where that may more than we, by the one that serves the engine's socket at `engine`.
    """
    roots = [f"/proc/{pid}/root" for pid in (1, _process_at(engine)) if pid > 0] + [""]
    machine_id = _first(*(f"{root}/etc/machine-id" for root in roots), "/var/lib/dbus/machine-id")
    return Machine(
        hostname=socket.gethostname(),
        address=_address(),
        cpu_count=os.cpu_count() or 1,
        memory_bytes=_meminfo("MemTotal"),
        disk_bytes=shutil.disk_usage(_existing(state_directory)).total,
        kernel_version=platform.release(),
        os_image=_os_image(roots),
        architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        machine_id=machine_id,
        system_uuid=_first(*_SYSTEM_UUIDS) or machine_id,
        boot_id=_line("/proc/sys/kernel/random/boot_id"),
        swap_bytes=_meminfo("SwapTotal"),
    )


def available_memory_bytes() -> int:
    """Return the memory that can be had without swapping."""
    return _meminfo("MemAvailable")


def free_disk_share(directory: Path) -> float:
    """Return the free share of the disk where a directory lies, 0 to 1."""
    found = shutil.disk_usage(_existing(directory))
    return found.free / max(1, found.total)


def process_share() -> float:
    """Return the share of process ids in use, 0 to 1."""
    used, limit = process_ids()
    return used / limit if limit else 0.0


def process_ids() -> tuple[int, int]:
    """Return how many process ids are in use, and how many there are; zeros when that cannot be read."""
    try:
        limit = int(_line("/proc/sys/kernel/pid_max"))
        return int(_line("/proc/loadavg").split()[3].split("/")[1]), limit
    except (ValueError, IndexError):
        return 0, 0


def filesystem(directory: Path, now: datetime) -> FilesystemUsage:
    """Measure the filesystem where a directory lies."""
    found = os.statvfs(_existing(directory))
    return FilesystemUsage(
        time=now,
        available_bytes=found.f_bavail * found.f_frsize,
        capacity_bytes=found.f_blocks * found.f_frsize,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        inodes_free=found.f_ffree,
        inodes=found.f_files,
    )


def node_usage(state: Path, images: Path | None, now: datetime) -> NodeUsage:
    """Measure what the node itself uses; `images` may not be seen from here."""
    used, limit = process_ids()
    seen = images is not None and images.exists()
    return NodeUsage(
        time=now,
        state=filesystem(state, now),
        images=filesystem(images, now) if images is not None and seen else None,
        process_limit=limit,
        process_count=used,
    )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _address() -> str:
    """Return the address that packets to the outside carry; 127.0.0.1 without any route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: nothing is sent.
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _process_at(engine: str) -> int:
    try:
        return process_at(engine) if engine else 0
    except OSError:
        return 0  # The engine does not run now.


def _os_image(roots: Sequence[str]) -> str:
    for root in roots:
        for line in _text(f"{root}/etc/os-release").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip('"')
    return platform.system()


def _line(path: str) -> str:
    return _text(path).strip().strip("\0")


def _first(*paths: str) -> str:
    return next((found for path in paths if (found := _line(path))), "")


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
