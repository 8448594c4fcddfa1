"""Keep the leases in one file that is replaced whole.

A save writes a new file beside the old one and renames it over the old one: after a kill either the old or
the new state is there, never a torn one. Nothing is synced to the disk, which costs more than all the rest of
a sandbox's wiring: a power cut ends every sandbox, and with them every lease. What it leaves may be torn, and
is then set aside. About 250 leases make 30 kB. All calls block; one thread owns the store.
"""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import Final

from services.kubelet.cri.network.ipam import Lease, Leases

_FORMAT_VERSION: Final = 1


class LeaseFile:
    """Loads and saves `Leases`; `path` is the file, its directory must exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, pool: IPv4Network) -> Leases | None:
        """Read the leases; None when there is no file, or a damaged one, which is set aside beside it.

        Raises `OSError` when the file is there but cannot be read: that must not pass for "no leases".
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return decode(data, pool)
        except ValueError:
            self._set_aside()
            return None

    def save(self, leases: Leases) -> None:
        """Replace the file; on return the leases outlive this process. Raises `OSError`."""
        replace_file(self._path, encode(leases), durable=False)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self._path.unlink(missing_ok=True)

    def _set_aside(self) -> None:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        self._path.rename(aside)


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` into `path` in one step that survives a kill, and a power cut if `durable`.

    Raises `OSError`; the old stays.
    """
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    fresh.replace(path)
    if not durable:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def encode(leases: Leases) -> bytes:
    """Render the leases as JSON."""
    return json.dumps(
        {
            "version": _FORMAT_VERSION,
            "pod_cidr": str(leases.pool),
            "last_offset": leases.last_offset,
            "leases": [
                {
                    "sandbox_id": lease.sandbox_id,
                    "address": str(lease.address),
                    "hostname": lease.hostname,
                    "wired": lease.wired,
                }
                for lease in leases.by_sandbox.values()
            ],
        }
    ).encode()


def decode(data: bytes, pool: IPv4Network) -> Leases:
    """Read JSON back. Raises `ValueError` for anything but a whole, known state."""
    try:
        state = json.loads(data)
        if state["version"] != _FORMAT_VERSION:
            raise ValueError(f"unknown version {state['version']!r}")
        leases = [_lease(row) for row in state["leases"]]
        last_offset = int(state["last_offset"]) if state["pod_cidr"] == str(pool) else 1
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"not a lease file: {err!r}") from err
    by_sandbox = {lease.sandbox_id: lease for lease in leases}
    if len(by_sandbox) < len(leases) or len({lease.address for lease in leases}) < len(leases):
        raise ValueError("a sandbox or an address occurs twice")
    return Leases(pool, last_offset, MappingProxyType(by_sandbox))


def _lease(row: dict[str, object]) -> Lease:
    return Lease(
        str(row["sandbox_id"]), IPv4Address(str(row["address"])), str(row["hostname"]), row["wired"] is True
    )
