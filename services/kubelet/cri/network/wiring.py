"""Join sandboxes to the bridge: the blocking half of the pod network, owned by one thread.

Intent, effect, record. `attach` first writes the lease (the intent; the veth's name follows from the
sandbox's id), then changes links, then marks the lease as wired. `detach` first deletes the link, then the
lease. Each may stop anywhere and be called again; what nobody calls for again is found by `collect`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from services.common import failpoints
from services.common.logs import get_logger
from services.common.owners import LockTakenError, take_lock
from services.kubelet.cri.network import errors, ipam, links
from services.kubelet.cri.network.changes import NetworkChanges
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.network.leases import LeaseFile, replace_file
from services.kubelet.cri.network.naming import (
    PortMark,
    bridge_mark,
    mac_address,
    parse_port_mark,
    port_mark,
    veth_name,
)
from services.kubelet.cri.network.netns import open_netns

log = get_logger(__name__)
_LEASE = failpoints.step("network.lease")
_LINK = failpoints.step("network.link")
_CONFIGURE = failpoints.step("network.configure")
_CONFIRM = failpoints.step("network.confirm")
_UNLINK = failpoints.step("network.unlink")
_RELEASE = failpoints.step("network.release")

_DEFAULT_MTU: Final = 1500
# Looks at the bridge that may be left out in a row: one a minute is taken in any case.
_SKIPS: Final = 5


Confirm = Callable[[], bool]


def _trusted() -> bool:
    return True


class Wiring:
    """Links and leases of one bridge. Not thread-safe: all calls come from one thread."""

    def __init__(self, config: BridgeConfig) -> None:
        self._config = config
        self._file = LeaseFile(config.directory / "leases.json")
        self._claim = config.directory / "bridge"
        self._leases = ipam.Leases(config.pool)
        self._mtu = config.mtu_bytes or _DEFAULT_MTU
        self._lock: int | None = None
        self._changes = NetworkChanges()
        self._whole_at: int | None = None
        self._skipped = 0
        self._obstacles: tuple[str, ...] = ()
        self._listed: list[links.Port] = []
        self._listed_at: int | None = None

    def open(self) -> None:
        """Take the state directory and load the leases; lost ones are rebuilt from the links' marks.

        Raises `NetworkError` NETWORK_STATE_IN_USE, `OSError`.
        """
        self._config.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        self._changes.open()
        loaded = self._file.load(self._config.pool)
        self._leases = loaded if loaded is not None else self._rebuilt()

    def close(self) -> None:
        """Give the state directory back. Links and leases stay."""
        links.close()
        self._changes.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def ensure_bridge(self) -> tuple[str, ...]:
        """Make the bridge whole and put stray veths back on it; return what stands in its way, for people.

        Nothing is looked at while the kernel tells of no change, a few times in a row at most. Raises
        `NetworkError` LINK_NAME_TAKEN when a foreign link has its name.
        """
        self._skipped += 1
        if self._whole_at == self._changes.count() and self._skipped <= _SKIPS:
            return self._obstacles
        self._obstacles = self._make_bridge_whole()
        # Our own changes are told to us as well.
        self._whole_at, self._skipped = self._changes.count(), 0
        return self._obstacles

    def _make_bridge_whole(self) -> tuple[str, ...]:
        config, name = self._config, self._config.bridge
        found = links.find_link(name)
        if found is None:
            replace_file(self._claim, name.encode())
        elif not self._owns(found):
            raise errors.name_taken(name)
        self._mtu = config.mtu_bytes or links.default_route_mtu() or _DEFAULT_MTU
        links.ensure_bridge(
            name,
            gateway=config.gateway,
            pool=config.pool,
            mac=mac_address(config.gateway),
            mtu=self._mtu,
            alias=bridge_mark(name),
        )
        for port in self._ports():
            if port.bridge != name:
                links.ensure_port(port.name, bridge=name, alias=port.alias)
        rivals = links.rival_routes(config.pool, bridge=name)
        return tuple(f"The route {rival} takes addresses of the pod CIDR {config.pool}" for rival in rivals)

    def attach(
        self, sandbox_id: str, pid: int, *, hostname: str, confirm: Confirm = _trusted
    ) -> tuple[str, ...]:
        """Give the network namespace of process `pid` its link; return the addresses.

        `confirm` is asked once the namespace is held, when the id can no longer come to mean another
        process: whether `pid` is the sandbox's still.
        """
        with open_netns(sandbox_id, pid) as netns:
            if not confirm():
                raise errors.netns_gone(sandbox_id, pid)
            lease = self._allocate(sandbox_id, hostname)
            name = veth_name(self._config.veth_prefix, sandbox_id)
            with _LINK:
                if not links.paired(name, netns=netns):
                    self._pair(name, netns, lease.address)
                alias = port_mark(PortMark(sandbox_id, lease.address, self._config.bridge))
                links.ensure_port(name, bridge=self._config.bridge, alias=alias)
            _LINK.recorded_in_thread()
            address = links.SandboxAddress(lease.address, self._config.pool, self._config.gateway)
            with _CONFIGURE:
                links.configure_sandbox(netns, address)
            _CONFIGURE.recorded_in_thread()
        with _CONFIRM:
            self._save(ipam.confirm(self._leases, sandbox_id))
        _CONFIRM.recorded_in_thread()
        return (str(lease.address),)

    def detach(self, sandbox_id: str) -> None:
        """Remove the sandbox's link and release its address. Nothing to remove is no error."""
        if self._leases.find(sandbox_id) is None and not self._has_link(sandbox_id):
            return
        with _UNLINK:
            links.delete_link(veth_name(self._config.veth_prefix, sandbox_id))
        _UNLINK.recorded_in_thread()
        with _RELEASE:
            self._save(ipam.release(self._leases, sandbox_id))
        _RELEASE.recorded_in_thread()

    def _has_link(self, sandbox_id: str) -> bool:
        return links.find_link(veth_name(self._config.veth_prefix, sandbox_id)) is not None

    def ledger(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the leases (sandbox id to address) and our links (name to sandbox id, "" if unmarked)."""
        leases = {lease.sandbox_id: str(lease.address) for lease in self._leases.by_sandbox.values()}
        marks = {port.name: parse_port_mark(port.alias) for port in self._ports()}
        return leases, {name: mark.sandbox_id if mark else "" for name, mark in marks.items()}

    def holds(self, sandbox_id: str) -> bool:
        """Tell whether a sandbox has a lease, be it wired or not."""
        return self._leases.find(sandbox_id) is not None

    def addresses(self, sandbox_id: str) -> tuple[str, ...]:
        """Return the addresses of a sandbox whose attach has ended well; () for any other."""
        lease = self._leases.find(sandbox_id)
        return (str(lease.address),) if lease is not None and lease.wired else ()

    def attached(self) -> frozenset[str]:
        """List the ids of all sandboxes with a lease or a marked link."""
        marks = (parse_port_mark(port.alias) for port in self._ports())
        return frozenset(self._leases.by_sandbox) | {mark.sandbox_id for mark in marks if mark}

    def severed(self) -> tuple[str, ...]:
        """List the sandboxes that were wired and whose link has gone: they need a new attach."""
        names = {port.name for port in self._ports()}
        wired = (lease.sandbox_id for lease in self._leases.by_sandbox.values() if lease.wired)
        prefix = self._config.veth_prefix
        return tuple(sandbox_id for sandbox_id in wired if veth_name(prefix, sandbox_id) not in names)

    def collect(self, live: Collection[str], among: Collection[str] | None = None) -> tuple[str, ...]:
        """Remove the links and leases of all sandboxes that are not `live`; return what was removed.

        `live` must be complete: an empty collection removes everything. It may be older
        than now where `among` says who was attached when it was taken: nobody else goes.
        """
        held = self.attached()
        gone = sorted((held if among is None else held.intersection(among)).difference(live))
        for sandbox_id in gone:
            self.detach(sandbox_id)
        kept = {veth_name(self._config.veth_prefix, sandbox_id) for sandbox_id in held.union(live)}
        nameless = [port.name for port in self._ports() if port.name not in kept]
        for name in nameless:
            links.delete_link(name)
        return (*gone, *nameless)

    def remove_all(self) -> None:
        """Remove every link, the bridge and the leases. What is foreign stays."""
        self.collect(())
        bridge = links.find_link(self._config.bridge)
        if bridge is not None and self._owns(bridge):
            links.delete_link(bridge.name)
        self._file.remove()
        self._claim.unlink(missing_ok=True)

    def _allocate(self, sandbox_id: str, hostname: str) -> ipam.Lease:
        leases, lease = ipam.allocate(self._leases, sandbox_id, hostname=hostname)
        with _LEASE:
            self._save(leases)
        _LEASE.recorded_in_thread()
        return lease

    def _pair(self, name: str, netns: int, address: IPv4Address) -> None:
        # Its other end is elsewhere when the sandbox was restarted.
        links.delete_link(name)
        if links.find_link(self._config.bridge) is None:
            self.ensure_bridge()
        mac = mac_address(address)
        links.create_pair(name, bridge=self._config.bridge, netns=netns, mac=mac, mtu=self._mtu)

    def _save(self, leases: ipam.Leases) -> None:
        if leases is not self._leases:
            self._file.save(leases)
            self._leases = leases

    def _rebuilt(self) -> ipam.Leases:
        leases = ipam.Leases(self._config.pool)
        for port in self._ports():
            mark = parse_port_mark(port.alias)
            if mark is not None:
                leases = ipam.adopt(leases, ipam.Lease(mark.sandbox_id, mark.address, wired=True))
        if leases.by_sandbox:
            log.warning("Rebuilt lost address leases from links", lease_count=len(leases.by_sandbox))
        return leases

    def _ports(self) -> list[links.Port]:
        """List the veths that are ours: named as ours, and on our bridge or marked for it."""
        count = self._changes.count()
        if count != self._listed_at:
            # Read after the count: what changes meanwhile moves it, and is read the next time.
            self._listed, self._listed_at = self._list_ports(), count
        return list(self._listed)

    def _list_ports(self) -> list[links.Port]:
        prefix, bridge = self._config.veth_prefix, self._config.bridge
        veths = (link for link in links.list_links() if link.kind == "veth" and link.name.startswith(prefix))
        return [veth for veth in veths if bridge in (veth.bridge, _marked_bridge(veth))]

    def _owns(self, link: links.Port) -> bool:
        if link.kind != "bridge":
            return False
        return link.alias == bridge_mark(link.name) or _read(self._claim) == link.name

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        try:
            self._lock = take_lock(self._config.directory / "lock")
        except LockTakenError as err:
            raise errors.in_use(str(self._config.directory), err.owner) from err


def _marked_bridge(port: links.Port) -> str:
    mark = parse_port_mark(port.alias)
    return mark.bridge if mark else ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
