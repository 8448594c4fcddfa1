"""Settings of the built-in pod network. Values only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, Literal

LINK_NAME_LENGTH: Final = 15  # linux/if.h: IFNAMSIZ is 16 with the closing zero
CHAIN_NAME_LENGTH: Final = 28  # xtables: XT_EXTENSION_MAXNAMELEN is 29 with the closing zero
VETH_PREFIX_LENGTH: Final = 5  # leaves 10 characters, 40 bits, of the sandbox id's digest

Backend = Literal["auto", "nft", "legacy"]


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """Names and addresses; two nodes on one host need other values in every name and in `pod_cidr`.

    `state_directory` gets a folder `network` with the leases and with what must be put back at clean-up.
    `cluster_cidrs` are the networks of the pods of all nodes, none for a node that is alone.
    `mtu_bytes` 0 takes the MTU of the link that holds the default route. `iptables_backend` "auto" takes
    the one that Docker's chains are in. `proc_sys` is where `/proc/sys` can be written; in a container that
    may be a bind of the host's. Raises `ValueError` that lists every fault.
    """

    state_directory: Path
    bridge: str = "tripod0"
    pod_cidr: str = "10.201.0.0/24"
    cluster_cidrs: tuple[str, ...] = ()
    chain_prefix: str = "TRIPOD"
    veth_prefix: str = "tp"
    mtu_bytes: int = 0
    iptables_backend: Backend = "auto"
    proc_sys: Path = Path("/proc/sys")
    operation_timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def pool(self) -> IPv4Network:
        """The pod CIDR."""
        return IPv4Network(self.pod_cidr)

    @property
    def cluster(self) -> tuple[IPv4Network, ...]:
        """The networks of all nodes' pods, this node's among them; none for a node that is alone."""
        return tuple(map(IPv4Network, self.cluster_cidrs))

    @property
    def gateway(self) -> IPv4Address:
        """The bridge's address: the first of the pod CIDR."""
        return self.pool[1]

    @property
    def directory(self) -> Path:
        """Where the network keeps its state."""
        return self.state_directory / "network"


def _faults(config: BridgeConfig) -> Iterator[str]:
    try:
        pool = IPv4Network(config.pod_cidr)
    except ValueError as err:
        yield f"pod_cidr: {err}"
    else:
        if not 8 <= pool.prefixlen <= 30:
            yield f"pod_cidr: {pool} must have a prefix length from 8 to 30"
    for text in config.cluster_cidrs:
        try:
            IPv4Network(text)
        except ValueError as err:
            yield f"cluster_cidr: {err}"
    if not 1 <= len(config.bridge) <= LINK_NAME_LENGTH or not _plain(config.bridge):
        yield f"bridge: {config.bridge!r} must be 1 to {LINK_NAME_LENGTH} letters, digits, '-', '_' or '.'"
    if not 1 <= len(config.veth_prefix) <= VETH_PREFIX_LENGTH or not _plain(config.veth_prefix):
        yield f"veth_prefix: {config.veth_prefix!r} must be 1 to {VETH_PREFIX_LENGTH} such characters"
    if not config.chain_prefix or len(f"{config.chain_prefix}-POSTROUTING") > CHAIN_NAME_LENGTH:
        yield f"chain_prefix: {config.chain_prefix!r} must be 1 to {CHAIN_NAME_LENGTH - 12} characters"
    elif not _plain(config.chain_prefix):
        yield f"chain_prefix: {config.chain_prefix!r} must be letters, digits, '-', '_' or '.'"
    if config.mtu_bytes and not 576 <= config.mtu_bytes <= 65535:
        yield f"mtu_bytes: {config.mtu_bytes} must be 0 or from 576 to 65535"


def _plain(name: str) -> bool:
    # A leading '-' would be read as an option by iptables; "." and ".." are refused by the kernel.
    return name[0].isalnum() and all(c.isascii() and (c.isalnum() or c in "-_.") for c in name)
