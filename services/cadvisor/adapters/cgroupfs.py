"""Read cgroups and /proc, with files that stay open. Implements `Kernel`.

A file opened once and read with `pread` costs a third of opening it each time, and one
that says what it said before is not parsed again. A cgroup that vanished answers ENODEV:
it is left out of the sample at once, never told as one that used nothing, and its files
are closed. A controller that was switched off under a living cgroup ends with its files.

A container that used no processor in the last two looks is not read further, but for its
network: what else it says moves by its own doing, and what the kernel does without it
(reclaim, late writes) shows within ten looks. The original's dynamic housekeeping waits
longer for such containers.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.cadvisor.core import cgroup_v1, cgroup_v2, procfs
from services.cadvisor.core.identify import container_id
from services.cadvisor.core.model import (
    NO_CPU,
    NO_MEMORY,
    CgroupLayout,
    Cpu,
    DiskIo,
    Identity,
    Interface,
    Memory,
    Processes,
    Stats,
)
from services.cadvisor.errors import NoCgroupsError, ReaderClosedError
from services.cadvisor.ports import Sample
from services.common import failpoints

_READ_BYTES = 65_536
_OPEN = failpoints.step("cgroup.open")
_CLOSE = failpoints.step("cgroup.close")
_FILE_LIMIT = 20_000
# A starting container's cgroup is made in one tree after the other, and its first process
# enters its network namespace after its cgroup.
_STARTING_LOOKS = 10
# Controllers that we read; others may be mounted too.
_WALKED = ("memory", "cpuacct", "cpu", "pids", "")
# Limits change by somebody's hand: they are read once in so many looks.
_LIMITS = frozenset(
    [
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
        "memory.limit_in_bytes",
        "pids.max",
        "cpu.weight",
        "cpu.max",
        "memory.max",
    ]
)
_LIMIT_LOOKS = 10
# cgroup v1 tells a list of processes again that is up to a second old: one look more than the last work.
_CALM_LOOKS = 2
# How long closing waits for a look that is under way.
_CLOSE_SECONDS = 1.0
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH})
# Parts of a container's statistics, by the first word of a file's name.
_PARTS = {"cpuacct": "cpu", "cpu": "cpu", "memory": "memory", "blkio": "disks", "io": "disks", "pids": "pids"}


class _GoneError(Exception):
    """A cgroup, or one of its controllers, is not there any more."""


@dataclass(slots=True)
class _File:
    """An open file and what it said last; None when it said nothing."""

    name: str
    descriptor: int
    content: bytes | None = None


@dataclass(slots=True)
class _Part:
    """Files that are parsed together, and what came of it."""

    files: list[_File] = field(default_factory=list)
    value: Any = None

    def changed(self, *, limits: bool = True) -> bool:
        """Read the files; tell whether one says something else. Raises `_GoneError`."""
        changed = False
        for file in self.files:
            if not limits and file.name in _LIMITS:
                continue
            content = _pread(file.descriptor)
            if content != file.content:
                file.content, changed = content, True
        return changed

    def contents(self) -> dict[str, bytes]:
        """Return what the files said, by name."""
        return {file.name: file.content for file in self.files if file.content is not None}

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            os.close(file.descriptor)
        self.files.clear()


@dataclass(slots=True)
class _Group:
    """One cgroup with its open files."""

    identity: Identity
    parts: dict[str, _Part]
    processes: _Part
    network: _Part = field(default_factory=_Part)
    stats: Stats | None = None
    looks: int = 0
    gone: bool = False
    # For so many looks it has used no processor.
    calm: int = 0
    # Whether a part says something that `stats` does not say yet.
    fresh: bool = True
    whole: bool = True
    age: int = 0

    def all_parts(self) -> Iterable[_Part]:
        """Return everything that is open."""
        return (*self.parts.values(), self.processes, self.network)

    def close(self) -> None:
        """Close its files."""
        for part in self.all_parts():
            part.close()


class CgroupReader:
    """Reads one machine. One thread at a time looks; another may close."""

    def __init__(self, cgroup_root: Path, proc_root: Path) -> None:
        self._proc = proc_root
        content = Path("/proc/self/mountinfo").read_bytes()
        self._mounts = procfs.cgroup_mounts(content, str(cgroup_root))
        if not self._mounts.v1 and not self._mounts.v2:
            raise NoCgroupsError(str(cgroup_root))
        self.layout = self._mounts.layout()
        self._tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        self._groups: dict[str, _Group] = {}
        self._machine = self._open("", "/")
        self._devices: dict[tuple[int, int], str] = {}
        self._looking = threading.Lock()
        self._closed = False

    def open_file_count(self) -> int:
        """Return how many files are open."""
        groups = (self._machine, *self._groups.values())
        return sum(len(part.files) for group in groups for part in group.all_parts())

    def close(self) -> None:
        """Close every file, but for those of a look that hangs. Later looks find nothing."""
        self._closed = True
        if self._looking.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._machine.close()
                for group in self._groups.values():
                    group.close()
                self._groups.clear()
            finally:
                self._looking.release()

    @contextmanager
    def _look(self) -> Iterator[None]:
        """Keep the files open. Raises `ReaderClosedError`."""
        with self._looking:
            if self._closed:
                raise ReaderClosedError
            yield

    def discover(self) -> None:
        """Find containers' cgroups; open what came, close what went or was moved.

        Raises `ReaderClosedError`.
        """
        with self._look():
            self._discover()

    def _discover(self) -> None:
        found = dict(self._walk())
        ages: dict[str, int] = {}
        for group in self._groups.values():
            group.age += 1
        for name in [name for name, group in self._groups.items() if _went(group, found.get(name))]:
            with _CLOSE:
                group = self._groups.pop(name)
                group.close()
                ages[name] = group.age
            _CLOSE.recorded_in_thread()
        held = self.open_file_count()
        for name in found.keys() - self._groups.keys():
            if held < _FILE_LIMIT:
                with _OPEN:
                    made = self._groups[name] = self._open(name, found[name])
                    made.age = ages.get(name, 0)
                held += sum(len(part.files) for part in made.all_parts())
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

    def _open(self, name: str, path: str) -> _Group:
        parts = {kind: _Part() for kind in _PARTS.values()}
        whole = True
        for root, names in self._places():
            whole = whole and Path(f"{root}{path}").is_dir()
            for file in names:
                descriptor = _open(f"{root}{path}/{file}")
                if descriptor is not None:
                    parts[_PARTS[file.partition(".")[0]]].files.append(_File(file, descriptor))
        directory = f"{self._base()}{path}"
        listed = _open(f"{directory}/cgroup.procs")
        processes = _Part([_File("cgroup.procs", listed)] if listed is not None else [])
        return _Group(Identity(path, id=name, created=_created(directory)), parts, processes, whole=whole)

    def _places(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        if self.layout is CgroupLayout.V2:
            return [(self._mounts.v2, cgroup_v2.FILES)]
        mounts = self._mounts.v1
        return [(mounts[name], files) for name, files in cgroup_v1.FILES.items() if name in mounts]

    def sample(self, *, whole: bool = False) -> Sample:
        """Look at everything once; what vanished meanwhile is left out. `whole`: also where nobody worked.

        Raises `ReaderClosedError`.
        """
        with self._look():
            return self._sample(whole=whole)

    def _sample(self, *, whole: bool) -> Sample:
        machine = self._look_at_machine()
        interfaces = procfs.interfaces(_content(self._proc / "1/net/dev"))
        machine = replace(machine, interfaces=interfaces, memory=self._machine_memory(machine.memory))
        containers: dict[str, Stats] = {}
        for name, group in self._groups.items():
            try:
                group.calm = 0 if whole else group.calm
                containers[name] = self._stats(group)
            except _GoneError:
                # Closed by the next look, which opens it anew if the cgroup is still there.
                group.gone = True
        return Sample(machine, containers)

    def _look_at_machine(self) -> Stats:
        try:
            return self._stats(self._machine)
        except _GoneError:  # A controller has moved to the other version.
            self._machine.close()
            self._machine = self._open("", "/")
            return self._stats(self._machine)

    def _machine_memory(self, memory: Memory) -> Memory:
        """The root cgroup of v1 and v2 knows no limit; the machine's memory is one."""
        total = procfs.memory_info(_content(self._proc / "meminfo")).get("MemTotal", 0)
        return replace(memory, limit=total)

    def _stats(self, group: _Group) -> Stats:
        """Return the same object as before when nothing has changed."""
        limits = group.stats is None or group.age <= _STARTING_LOOKS or group.age % _LIMIT_LOOKS == 0
        cpu = group.parts["cpu"]
        ran = cpu.changed(limits=limits)
        if ran or cpu.value is None:
            cpu.value, group.fresh = self._parse("cpu", cpu.contents(), 0), True
        group.calm = 0 if ran else group.calm + 1
        if group.calm < _CALM_LOOKS or limits or not cpu.files:
            self._look_closer(group, limits=limits)
        interfaces = self._interfaces(group.network)
        if interfaces is not group.network.value:
            group.network.value, group.fresh = interfaces, True
        if group.fresh or group.stats is None:
            group.stats, group.fresh = self._made(group), False
        return group.stats

    def _look_closer(self, group: _Group, *, limits: bool) -> None:
        """Read what changes by a container's own doing."""
        pids = group.processes
        if pids.changed() or pids.value is None:
            pids.value = (pids.contents().get("cgroup.procs") or b"").split()
            group.parts["pids"].value, group.looks = None, 0
        if group.looks <= _STARTING_LOOKS:
            group.looks += 1
            self._open_network(group, pids.value)
        for kind, part in group.parts.items():
            if kind != "cpu" and (part.changed(limits=limits) or part.value is None):
                part.value, group.fresh = self._parse(kind, part.contents(), len(pids.value)), True

    def _made(self, group: _Group) -> Stats:
        return Stats(
            identity=group.identity,
            cpu=group.parts["cpu"].value,
            memory=group.parts["memory"].value,
            interfaces=group.network.value,
            disks=group.parts["disks"].value,
            processes=group.parts["pids"].value,
        )

    def _parse(
        self, kind: str, contents: Mapping[str, bytes], process_count: int
    ) -> Cpu | Memory | Processes | tuple[DiskIo, ...]:
        v2 = self.layout is CgroupLayout.V2
        if kind == "pids":
            read = cgroup_v2.processes if v2 else cgroup_v1.processes
            return read(contents, process_count)
        if kind == "disks":
            disks = cgroup_v2.disks(contents) if v2 else cgroup_v1.disks(contents)
            return tuple(replace(d, device=self._devices.get((d.major, d.minor), "")) for d in disks)
        if not contents:
            return NO_CPU if kind == "cpu" else NO_MEMORY
        if kind == "cpu":
            return cgroup_v2.cpu(contents) if v2 else cgroup_v1.cpu(contents, self._tick_ns)
        return cgroup_v2.memory(contents) if v2 else cgroup_v1.memory(contents)

    def _interfaces(self, network: _Part) -> tuple[Interface, ...]:
        if not network.changed() and network.value is not None:
            return network.value if network.files else ()
        return procfs.interfaces(network.contents().get("dev", b""))

    def _open_network(self, group: _Group, pids: list[bytes]) -> None:
        """Open the interfaces that a container's first process sees; the machine's are read apart.

        Open until the container's processes change: an open file keeps a network namespace alive.
        """
        group.network.close()
        if group.identity.id and pids:
            descriptor = _open(f"{self._proc}/{pids[0].decode(errors='replace')}/net/dev")
            if descriptor is not None:
                group.network.files.append(_File("dev", descriptor))


def _went(group: _Group, path: str | None) -> bool:
    """Tell whether a group must be closed: it went, was moved, or is to be opened as a whole."""
    return group.gone or path != group.identity.path or (not group.whole and group.age <= _STARTING_LOOKS)


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _pread(descriptor: int) -> bytes | None:
    """Read a file from its start; None where the kernel has nothing to say. Raises `_GoneError`."""
    try:
        return os.pread(descriptor, _READ_BYTES, 0)
    except OSError as error:
        if error.errno in _GONE:
            raise _GoneError from error
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
