"""Hand out the addresses of the pod CIDR. No I/O, no clock.

Rules:

- The network's and the broadcast address and the first one, the gateway's, are never handed out.
- A sandbox keeps its address until it is released; asking again gives the same one.
- Round robin: the search begins after the address that was handed out last, so that a released one rests as
  long as the pool allows. Others may still hold connections, DNS answers and neighbour entries for it.
- Leases of another pod CIDR (the setting was changed) stay until they are released.

Left out: IPv6, reserved addresses, more than one address for a sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from types import MappingProxyType
from typing import Final

from services.kubelet.cri.network import errors

_GATEWAY_OFFSET: Final = 1


@dataclass(frozen=True, slots=True)
class Lease:
    """A sandbox's address. `wired` turns true when its link is complete."""

    sandbox_id: str
    address: IPv4Address
    hostname: str = ""
    wired: bool = False


@dataclass(frozen=True, slots=True)
class Leases:
    """Who has which address; `last_offset` is the place in the pool that was handed out last."""

    pool: IPv4Network
    last_offset: int = _GATEWAY_OFFSET
    by_sandbox: Mapping[str, Lease] = field(default_factory=lambda: MappingProxyType({}))

    def find(self, sandbox_id: str) -> Lease | None:
        """Return the sandbox's lease, if it has one."""
        return self.by_sandbox.get(sandbox_id)


def allocate(leases: Leases, sandbox_id: str, *, hostname: str = "") -> tuple[Leases, Lease]:
    """Give the sandbox an address, or the one it has.

    Raises `NetworkError` POD_ADDRESSES_EXHAUSTED when every address is taken.
    """
    known = leases.find(sandbox_id)
    if known is not None:
        return leases, known
    taken = {lease.address for lease in leases.by_sandbox.values()}
    for offset in _offsets(leases):
        if leases.pool[offset] not in taken:
            lease = Lease(sandbox_id, leases.pool[offset], hostname)
            return _with(replace(leases, last_offset=offset), lease), lease
    raise errors.pool_exhausted(str(leases.pool), len(taken))


def confirm(leases: Leases, sandbox_id: str) -> Leases:
    """Note that the sandbox's link is complete. Without a lease, nothing changes."""
    lease = leases.find(sandbox_id)
    if lease is None or lease.wired:
        return leases
    return _with(leases, replace(lease, wired=True))


def release(leases: Leases, sandbox_id: str) -> Leases:
    """Take the sandbox's address back. Without a lease, nothing changes."""
    if sandbox_id not in leases.by_sandbox:
        return leases
    rest = {key: lease for key, lease in leases.by_sandbox.items() if key != sandbox_id}
    return replace(leases, by_sandbox=MappingProxyType(rest))


def adopt(leases: Leases, found: Lease) -> Leases:
    """Take in a lease that was found on the host, if neither its sandbox nor its address is known."""
    addresses = {lease.address for lease in leases.by_sandbox.values()}
    if found.sandbox_id in leases.by_sandbox or found.address in addresses:
        return leases
    return _with(leases, found)


def _with(leases: Leases, lease: Lease) -> Leases:
    return replace(leases, by_sandbox=MappingProxyType({**leases.by_sandbox, lease.sandbox_id: lease}))


def _offsets(leases: Leases) -> Iterator[int]:
    first, last = _GATEWAY_OFFSET + 1, leases.pool.num_addresses - 2
    start = leases.last_offset + 1 if first <= leases.last_offset < last else first
    yield from range(start, last + 1)
    yield from range(first, start)
