"""Connects to what listens on a sandbox's loopback, without any program inside.

A socket belongs for ever to the network namespace in which it was made. So a thread enters the sandbox's,
makes the socket, and ends; connecting is then asyncio's part, like everything after. A sandbox on the host's
network has the namespace that we are in already.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

from services.common.errors import Code
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.network.links import in_netns
from services.kubelet.cri.sandboxes import Holdings
from services.kubelet.cri.streaming.session import Pipes

CONNECT_SECONDS: Final = 10.0
_READ_BYTES: Final = 64 * 1024
_PLACES: Final = ((socket.AF_INET, "127.0.0.1", "tcp4"), (socket.AF_INET6, "::1", "tcp6"))


class SandboxPorts:
    """Implements `ForwardBackend`."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    async def connect(self, sandbox_id: str, port: int) -> Pipes:
        """Connect to localhost inside, by IPv4 or else by IPv6.

        Raises SANDBOX_NOT_FOUND, SANDBOX_NOT_READY, PORT_REFUSED.
        """
        inspected, _ = await self._holdings.sandbox(sandbox_id)
        state = inspected["State"]
        if state["Status"] != "running" or not state["Pid"]:
            raise CriError(
                f"Pod sandbox {sandbox_id} is not ready",
                code=Code.FAILED_PRECONDITION,
                reason="SANDBOX_NOT_READY",
            )
        namespace = f"/proc/{state['Pid']}/ns/net"
        causes: list[str] = []
        for family, address, kind in _PLACES:
            try:
                return await _connect(namespace, family, address, port)
            except (OSError, TimeoutError) as error:
                why = os.strerror(error.errno) if error.errno else "timed out"
                causes.append(f"dial {kind} {address}:{port}: connect: {why.lower()}")
        raise CriError(
            f"failed to connect to localhost:{port} inside namespace {sandbox_id!r}, "
            f"IPv4: {causes[0]} IPv6: {causes[1]}",
            code=Code.UNAVAILABLE,
            reason="PORT_REFUSED",
            metadata={"pod_sandbox_id": sandbox_id, "port": str(port)},
        )


async def _connect(namespace: str, family: socket.AddressFamily, address: str, port: int) -> Pipes:
    plain = await asyncio.to_thread(socket_inside, namespace, family)
    try:
        plain.setblocking(False)
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(plain, (address, port))
            return await asyncio.open_connection(sock=plain, limit=_READ_BYTES)
    except BaseException:
        plain.close()
        raise


def socket_inside(namespace: str, family: socket.AddressFamily) -> socket.socket:
    """Make a TCP socket in the network namespace of a path such as `/proc/1/ns/net`. Raises `OSError`."""
    if os.path.samefile(namespace, "/proc/self/ns/net"):  # noqa: PTH121  # follows what is no real link
        return socket.socket(family, socket.SOCK_STREAM)
    handle = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.closing(os.fdopen(handle, closefd=True)):
        return in_netns(handle, lambda: socket.socket(family, socket.SOCK_STREAM))
