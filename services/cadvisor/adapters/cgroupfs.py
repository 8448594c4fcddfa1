"""Read cgroups and /proc, with files that stay open. Implements `Kernel`.

A file opened once and read with `pread` costs a third of opening it each time. A
cgroup that vanished answers ENODEV or ENOENT: its files are closed, and it is gone
from the next snapshot on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from services.cadvisor.core import cgroup_v1, cgroup_v2, procfs
from services.cadvisor.core.identify import container_id
from services.cadvisor.core.model import (
    CgroupLayout,
    Cpu,
    DiskIo,
    Identity,
    Interface,
    Memory,
    Processes,
    Stats,
)
from services.cadvisor.errors import NoCgroupsError
from services.cadvisor.ports import Sample
from services.common import failpoints

_READ_BYTES = 65_536
_OPEN = failpoints.step("cgroup.open")
_CLOSE = failpoints.step("cgroup.close")
_FILE_LIMIT = 20_000
# Controllers that we read; others may be mounted too.
_WALKED = ("memory", "cpuacct", "cpu", "pids", "")


@dataclass(slots=True)
class _Group:
    """One cgroup with its open files, by name."""

    path: str
    files: dict[str, int]
    created: datetime | None
    process_files: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close its files."""
        for descriptor in (*self.files.values(), *self.process_files):
            os.close(descriptor)


class CgroupReader:
    """Reads one machine. Used by one thread at a time."""

    def __init__(self, cgroup_root: Path, proc_root: Path) -> None:
        self._proc = proc_root
        content = Path("/proc/self/mountinfo").read_bytes()
        self._mounts = procfs.cgroup_mounts(content, str(cgroup_root))
        if not self._mounts.v1 and not self._mounts.v2:
            raise NoCgroupsError(str(cgroup_root))
        self.layout = self._mounts.layout()
        self._tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        self._groups: dict[str, _Group] = {}
        self._machine = self._open("/")
        self._devices: dict[tuple[int, int], str] = {}

    def open_file_count(self) -> int:
        """Return how many files are open."""
        groups = (self._machine, *self._groups.values())
        return sum(len(group.files) + len(group.process_files) for group in groups)

    def close(self) -> None:
        """Close every file."""
        for group in (self._machine, *self._groups.values()):
            group.close()
        self._groups.clear()

    def discover(self) -> None:
        """Find containers' cgroups; open what came, close what went."""
        found = dict(self._walk())
        for name in self._groups.keys() - found.keys():
            with _CLOSE:
                self._groups.pop(name).close()
            _CLOSE.recorded_in_thread()
        for name in found.keys() - self._groups.keys():
            if self.open_file_count() < _FILE_LIMIT:
                with _OPEN:
                    self._groups[name] = self._open(found[name])
                _OPEN.recorded_in_thread()
        self._devices = procfs.disk_names(_content(self._proc / "diskstats"))

    def _base(self) -> str:
        """Return the tree in which containers are looked for."""
        if self.layout is CgroupLayout.V2:
            return self._mounts.v2
        return next(self._mounts.v1[name] for name in _WALKED if name in self._mounts.v1)

    def _walk(self) -> Iterable[tuple[str, str]]:
        base = self._base()
        for directory, names, _ in os.walk(base):
            for name in list(names):
                path = f"{directory}/{name}".removeprefix(base)
                found = container_id(path)
                if found:
                    names.remove(name)  # What a container nests is its own matter.
                    yield found, path

    def _open(self, path: str) -> _Group:
        files: dict[str, int] = {}
        processes: list[int] = []
        directory = ""
        for root, names in self._places():
            directory = f"{root}{path}"
            for name in names:
                descriptor = _open(f"{directory}/{name}")
                if descriptor is not None:
                    files[name] = descriptor
        listed = _open(f"{self._base()}{path}/cgroup.procs")
        if listed is not None:
            processes.append(listed)
        return _Group(path, files, _created(f"{self._base()}{path}"), processes)

    def _places(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        if self.layout is CgroupLayout.V2:
            return [(self._mounts.v2, cgroup_v2.FILES)]
        mounts = self._mounts.v1
        return [(mounts[name], files) for name, files in cgroup_v1.FILES.items() if name in mounts]

    def sample(self) -> Sample:
        """Read everything once."""
        machine = self._stats(self._machine, "")
        interfaces = procfs.interfaces(_content(self._proc / "1/net/dev"))
        machine = replace(machine, interfaces=interfaces, memory=self._machine_memory(machine.memory))
        containers = {name: self._stats(group, name) for name, group in self._groups.items()}
        return Sample(machine, containers)

    def _machine_memory(self, memory: Memory) -> Memory:
        """The root cgroup of v1 and v2 knows no limit; the machine's memory is one."""
        total = procfs.memory_info(_content(self._proc / "meminfo")).get("MemTotal", 0)
        return replace(memory, limit=total)

    def _stats(self, group: _Group, name: str) -> Stats:
        contents = {file: data for file, fd in group.files.items() if (data := _pread(fd)) is not None}
        pids = b"".join(_pread(fd) or b"" for fd in group.process_files).split()
        cpu, memory, disks, processes = self._parse(contents, len(pids))
        return Stats(
            identity=Identity(group.path, id=name, created=group.created),
            cpu=cpu,
            memory=memory,
            interfaces=self._interfaces(pids) if name else (),
            disks=tuple(replace(d, device=self._devices.get((d.major, d.minor), "")) for d in disks),
            processes=processes,
        )

    def _parse(
        self, contents: dict[str, bytes], process_count: int
    ) -> tuple[Cpu, Memory, tuple[DiskIo, ...], Processes]:
        if self.layout is CgroupLayout.V2:
            return (
                cgroup_v2.cpu(contents),
                cgroup_v2.memory(contents),
                cgroup_v2.disks(contents),
                cgroup_v2.processes(contents, process_count),
            )
        return (
            cgroup_v1.cpu(contents, self._tick_ns),
            cgroup_v1.memory(contents),
            cgroup_v1.disks(contents),
            cgroup_v1.processes(contents, process_count),
        )

    def _interfaces(self, pids: list[bytes]) -> tuple[Interface, ...]:
        """Read the interfaces that a container's first process sees."""
        if not pids:
            return ()
        return procfs.interfaces(_content(self._proc / pids[0].decode() / "net/dev"))


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _pread(descriptor: int) -> bytes | None:
    try:
        return os.pread(descriptor, _READ_BYTES, 0)
    except OSError:
        return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _created(path: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(Path(path).stat().st_ctime, UTC)
    except OSError:
        return None
