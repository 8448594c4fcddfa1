"""Read who listens on our ports, from /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cli.doctor.facts import PortFacts
from cli.doctor.gather import host

PORTS = {
    50051: "kubelet, gRPC",
    50052: "proxy, gRPC",
    50053: "cadvisor, gRPC",
    10255: "kubelet, HTTP",
    10249: "proxy, HTTP",
    4194: "cadvisor, HTTP",
}
_LISTEN = "0A"


def gather() -> tuple[PortFacts, ...]:
    """Look at each port."""
    inodes = {
        port: inode
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for port, inode in listeners(host.text(table) or "").items()
    }
    wanted = {inodes[port] for port in PORTS if port in inodes}
    owners = _owners(wanted) if wanted else {}
    return tuple(_port(port, purpose, inodes.get(port), owners) for port, purpose in PORTS.items())


def _port(port: int, purpose: str, inode: str | None, owners: dict[str, int]) -> PortFacts:
    if inode is None:
        return PortFacts(port, purpose)
    pid = owners.get(inode)
    if pid is None:
        return PortFacts(port, purpose, used=True)
    words = (host.text(f"/proc/{pid}/cmdline") or "").replace("\0", " ").strip()
    name = host.text(f"/proc/{pid}/comm") or "a process"
    return PortFacts(port, purpose, used=True, owner=f"{name} (process {pid})", ours=is_ours(words, purpose))


def is_ours(command: str, purpose: str) -> bool:
    """Tell whether a command line is that of the service that belongs to a port."""
    return f"services.{purpose.split(',')[0]}" in command.split()


def listeners(table: str) -> dict[int, str]:
    """Read /proc/net/tcp: the port of each listening socket, with its inode."""
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            found[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    return found


def _owners(inodes: set[str]) -> dict[str, int]:
    """Find the processes that hold sockets, as far as /proc shows them to this user."""
    found: dict[str, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            found |= {inode: int(folder.name) for inode in _sockets(folder / "fd") & inodes}
    return found


def _sockets(folder: Path) -> set[str]:
    """Return the sockets that a process holds; what it closes meanwhile is left out."""
    held: set[str] = set()
    try:
        entries = list(folder.iterdir())
    except OSError:
        return held
    for entry in entries:
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:["):
                held.add(target[8:-1])
    return held
