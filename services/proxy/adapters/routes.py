"""Routes over netlink. Implements `Routes`; changes none but those of our protocol number.

Source: linux/rtnetlink.h, rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from ipaddress import IPv4Network

from services.proxy.adapters.nfmessages import attribute, attributes
from services.proxy.core.routes import PROTOCOL, FoundRoute
from services.proxy.errors import KernelRefusedError

_NEW, _DELETE, _GET = 24, 25, 26  # RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE
_ERROR, _DONE = 2, 3
_REQUEST, _ACKNOWLEDGE, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_HEAD = struct.Struct("=IHHII")
# rtm_family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_MAIN, _UNICAST = 254, 1  # RT_TABLE_MAIN, RTN_UNICAST
# RT_SCOPE_UNIVERSE; RT_SCOPE_NOWHERE, which deletes a route of any scope.
_UNIVERSE, _ANY_SCOPE = 0, 255
_DESTINATION, _GATEWAY, _PRIORITY, _TABLE = 1, 5, 6, 15  # RTA_...
# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40
_RECEIVE_BYTES = 1 << 18
_DEADLINE = struct.pack("=qq", 10, 0)


class KernelRoutes:
    """Opens a socket for each call: nodes seldom come and go."""

    async def list(self) -> list[FoundRoute]:
        """Return the IPv4 routes of the main table, those that lead nowhere (blackhole), too.

        Raises `KernelRefusedError`.
        """
        try:
            return await asyncio.to_thread(_list)
        except OSError as error:
            raise KernelRefusedError(f"list of routes: {error.strerror}") from error

    async def put(self, network: str, gateway: str, *, replace: bool) -> None:
        """Add a route of ours, or lead one of ours elsewhere. Raises `KernelRefusedError`."""
        flags = _CREATE | (_REPLACE if replace else _EXCLUSIVE)
        await asyncio.to_thread(_change, _NEW, flags, network, gateway)

    async def remove(self, network: str, gateway: str) -> None:
        """Remove a route of ours. One that is gone is no error."""
        await asyncio.to_thread(_change, _DELETE, 0, network, gateway)

    async def reach(self, address: str) -> str:
        """Say why an address is not on a link of this host; empty when it is."""
        return await asyncio.to_thread(_reach, address)

    async def changes(self) -> AsyncIterator[None]:
        """Yield whenever routes, addresses or links may have changed; once at the beginning."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as heard:
            heard.bind((0, _GROUPS))
            heard.setblocking(False)
            yield None
            while True:
                try:
                    await loop.sock_recv(heard, _RECEIVE_BYTES)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                yield None


def _list() -> list[FoundRoute]:
    found: list[FoundRoute] = []
    for body in _ask(_GET, _DUMP, _route(0, 0)):
        _, length, _, _, table, protocol, *_ = _ROUTE.unpack_from(body)
        inner = attributes(body[_ROUTE.size :])
        table = int.from_bytes(inner[_TABLE], sys.byteorder) if _TABLE in inner else table
        if table != _MAIN:
            continue
        network = IPv4Network((inner.get(_DESTINATION, bytes(4)), length))
        metric = int.from_bytes(inner.get(_PRIORITY, b""), sys.byteorder)
        found.append(FoundRoute(str(network), _text(inner, _GATEWAY), protocol, metric))
    return found


def _text(inner: Mapping[int, bytes], kind: int) -> str:
    return socket.inet_ntoa(inner[kind]) if kind in inner else ""


def _change(kind: int, flags: int, network: str, gateway: str) -> None:
    found = IPv4Network(network)
    body = _route(found.prefixlen, PROTOCOL, _ANY_SCOPE if kind == _DELETE else _UNIVERSE)
    body += attribute(_DESTINATION, found.network_address.packed)
    if gateway:
        body += attribute(_GATEWAY, socket.inet_aton(gateway))
    try:
        list(_ask(kind, flags | _ACKNOWLEDGE, body))
    except OSError as error:
        if kind == _DELETE and error.errno in (errno.ESRCH, errno.ENOENT):
            return
        raise KernelRefusedError(f"route {network} via {gateway}: {error.strerror}") from error


def _reach(address: str) -> str:
    try:
        (body,) = _ask(_GET, 0, _route(32, 0) + attribute(_DESTINATION, socket.inet_aton(address)))
    except OSError as error:
        return f"its address {address} cannot be reached: {error.strerror}"
    kind, inner = body[7], attributes(body[_ROUTE.size :])
    if kind != _UNICAST:
        return f"its address {address} is no other host's"
    if _GATEWAY in inner:
        via = _text(inner, _GATEWAY)
        return f"its address {address} is behind the gateway {via}, not on a link of this node"
    return ""


def _route(length: int, protocol: int, scope: int = _UNIVERSE) -> bytes:
    return _ROUTE.pack(socket.AF_INET, length, 0, 0, _MAIN, protocol, scope, _UNICAST, 0)


def _ask(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Send one request and yield the bodies of what answers it. Raises `OSError`."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _DEADLINE)
        netlink.bind((0, 0))
        netlink.sendall(_HEAD.pack(_HEAD.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        while True:
            data, offset = netlink.recv(_RECEIVE_BYTES), 0
            while offset + _HEAD.size <= len(data):
                length, answer, *_ = _HEAD.unpack_from(data, offset)
                inner = data[offset + _HEAD.size : offset + length]
                offset += (length + 3) & ~3
                if answer == _ERROR:
                    code = struct.unpack_from("=i", inner)[0]
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                if answer == _DONE:
                    return
                yield inner
                if flags & _DUMP != _DUMP:
                    return
