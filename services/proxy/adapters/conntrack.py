"""Tracked flows over netlink. Implements `Flows`.

A flow is deleted by the very tuple that the kernel told, so that one look at the
table and one message for each flow do, however many services there are.

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from socket import inet_ntoa
from typing import TypeVar

from services.common.logs import get_logger
from services.proxy.adapters.nfmessages import (
    ACKNOWLEDGE,
    CONNTRACK,
    DUMP,
    as_number,
    attribute,
    attributes,
    message,
    nested,
)
from services.proxy.adapters.nfsocket import InterruptedDumpError, NetlinkSocket
from services.proxy.core.conntrack import Flow, StaleFlows
from services.proxy.errors import KernelRefusedError

T = TypeVar("T")
log = get_logger(__name__)
_GET, _DELETE = 1, 2  # IPCTNL_MSG_CT_...
_ORIGINAL, _REPLY, _ID = 1, 2, 12  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID
_ADDRESSES, _PROTOCOL = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_SOURCE, _DESTINATION = 1, 2  # CTA_IP_V4_SRC, CTA_IP_V4_DST
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
# The attribute as it lies in a message, by which most flows are passed over unread.
_UDP = attribute(_NUMBER, b"\x11")[:5]
_LOOKS = 3
_NAMES = {6: "tcp", 17: "udp", 132: "sctp"}


@dataclass(frozen=True, slots=True)
class Tracked:
    """A flow, and the attributes by which the kernel knows it again."""

    flow: Flow
    known_by: bytes


class ConntrackFlows:
    """Opens a socket for each call: changes of UDP endpoints are rare.

    Where the kernel does not tell its flows, none are forgotten, which is logged.
    """

    async def delete(self, flows: Sequence[StaleFlows]) -> None:
        """Forget flows."""
        if flows:
            stale = frozenset(flows)
            count = await asyncio.to_thread(_with_socket, lambda netlink: _delete(netlink, stale), 0)
            if count:
                log.info("Forgot flows", count=count)

    async def udp(self) -> list[Flow]:
        """List the tracked UDP flows; nothing where they cannot be had."""
        return await asyncio.to_thread(_with_socket, _udp, [])


def _with_socket(act: Callable[[NetlinkSocket], T], otherwise: T) -> T:
    error: Exception | None = None
    for _ in range(_LOOKS):
        try:
            netlink = NetlinkSocket()
            try:
                return act(netlink)
            finally:
                netlink.close()
        except InterruptedDumpError as interrupted:
            error = interrupted
        except (OSError, KernelRefusedError) as failed:
            error = failed
            break
    log.warning("Could not look at the tracked flows", error=str(error) or type(error).__name__)
    return otherwise


def _udp(netlink: NetlinkSocket) -> list[Flow]:
    return [tracked.flow for tracked in _tracked(netlink, _UDP) if tracked.flow.protocol == "udp"]


def _tracked(netlink: NetlinkSocket, having: bytes = b"") -> Iterator[Tracked]:
    """Yield the flows as they are told: there may be hundreds of thousands, and few are of interest."""
    for answer in netlink.each(message(_GET, DUMP, subsystem=CONNTRACK)):
        found = read(answer.body) if having in answer.body else None
        if found is not None:
            yield found


def _delete(netlink: NetlinkSocket, stale: frozenset[StaleFlows]) -> int:
    gone = [tracked for tracked in _tracked(netlink) if _matches(tracked.flow, stale)]
    return sum(_forgotten(netlink, tracked) for tracked in gone)


def _forgotten(netlink: NetlinkSocket, tracked: Tracked) -> bool:
    """Forget one flow; one that the kernel holds on to, such as in a flow table, keeps no other."""
    try:
        netlink.ask(message(_DELETE, ACKNOWLEDGE, tracked.known_by, subsystem=CONNTRACK))
    except KernelRefusedError as error:
        log.warning("Could not forget a flow", flow=str(tracked.flow), error=error.message)
        return False
    return True


def _matches(flow: Flow, stale: frozenset[StaleFlows]) -> bool:
    place = flow.address, flow.protocol, flow.port
    if StaleFlows(*place, flow.endpoint) in stale:
        return True
    # Without an endpoint: flows that nobody translated, which answer from the address itself.
    return flow.endpoint == (flow.address, flow.port) and StaleFlows(*place) in stale


def read(body: bytes) -> Tracked | None:
    """Read one flow; None for a protocol without ports, or another family's."""
    found = attributes(body)
    original, reply = (attributes(found.get(kind, b"")) for kind in (_ORIGINAL, _REPLY))
    to, back = (attributes(side.get(_ADDRESSES, b"")) for side in (original, reply))
    asked, answers = (attributes(side.get(_PROTOCOL, b"")) for side in (original, reply))
    name = _NAMES.get(as_number(asked.get(_NUMBER, b"")))
    if name is None or _DESTINATION not in to or _SOURCE not in back:
        return None
    if _DESTINATION_PORT not in asked or _SOURCE_PORT not in answers:
        return None
    port, answering = as_number(asked[_DESTINATION_PORT]), as_number(answers[_SOURCE_PORT])
    flow = Flow(name, inet_ntoa(to[_DESTINATION]), port, (inet_ntoa(back[_SOURCE]), answering))
    return Tracked(flow, nested(_ORIGINAL, found[_ORIGINAL]) + attribute(_ID, found[_ID]))
