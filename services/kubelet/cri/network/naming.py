"""Names and marks of what the pod network puts on the host. No I/O.

Every name follows from the sandbox id alone, so that a half-made attach is found again after a crash. The
mark goes into the link's alias: from it the leases can be rebuilt when their file is lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Address
from typing import Final

from services.kubelet.cri.network.config import LINK_NAME_LENGTH

SANDBOX_LINK: Final = "eth0"

_MARK: Final = "io.tripod.sandbox"
_PORT_MARK: Final = re.compile(
    _MARK + r"=(?P<sandbox_id>\S+) address=(?P<address>\S+) bridge=(?P<bridge>\S+)"
)


@dataclass(frozen=True, slots=True)
class PortMark:
    """Whose a veth is, which address it carries, and which bridge it belongs on."""

    sandbox_id: str
    address: IPv4Address
    bridge: str


def veth_name(prefix: str, sandbox_id: str) -> str:
    """Name the host's end of a sandbox's pair: the prefix and a digest of the id, 15 characters."""
    digest = blake2b(sandbox_id.encode(), digest_size=16).hexdigest()
    return (prefix + digest)[:LINK_NAME_LENGTH]


def mac_address(address: IPv4Address) -> str:
    """Give the MAC that belongs to an address, so that neighbour tables stay right when it is used again.

    Source: the scheme of the CNI bridge plugin, locally administered prefix 0a:58.
    """
    return "0a:58:" + ":".join(f"{octet:02x}" for octet in address.packed)


def bridge_mark(bridge: str) -> str:
    """Render the alias of our bridge."""
    return f"io.tripod.bridge={bridge}"


def port_mark(mark: PortMark) -> str:
    """Render the alias of a sandbox's veth."""
    return f"{_MARK}={mark.sandbox_id} address={mark.address} bridge={mark.bridge}"


def parse_port_mark(alias: str) -> PortMark | None:
    """Read an alias back; None if it is not one of ours."""
    found = _PORT_MARK.fullmatch(alias)
    if found is None:
        return None
    try:
        return PortMark(found["sandbox_id"], IPv4Address(found["address"]), found["bridge"])
    except ValueError:
        return None
