"""Tell whether anything of the host's links, addresses or routes has changed. Source: rtnetlink(7).

Listing links costs a millisecond of CPU for each, in Python; asking this costs one system call.
"""

from __future__ import annotations

import socket
from typing import Final

# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE.
_GROUPS: Final = 0x1 | 0x10 | 0x40
_READ_BYTES: Final = 65_536


class NetworkChanges:
    """A count that moves with every change in the network namespace of the thread that opened it.

    Used by one thread; `open` first. Where the kernel lost messages, the count moves too.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._count = 0

    def open(self) -> None:
        """Begin to count. Raises `OSError`."""
        if self._socket is None:
            made = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            made.setblocking(False)
            made.bind((0, _GROUPS))
            self._socket = made

    def close(self) -> None:
        """Count no longer."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def count(self) -> int:
        """Return a number that differs from the one before if something has changed since, or may have."""
        if self._socket is None:
            self._count += 1
            return self._count
        while True:
            try:
                self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return self._count
            except OSError:  # ENOBUFS: messages were lost.
                pass
            self._count += 1
