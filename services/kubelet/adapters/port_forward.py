"""One connection to a port inside a pod, by the runtime's streaming server.

Source: k8s.io/client-go tools/portforward: each connection has an error stream, whose half is ended at once,
and a data stream, joined by a request id.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from services.common.errors import Code
from services.common.remotecommand.negotiation import FORWARD_PROTOCOL, SPDY, VERSION_HEADER
from services.common.spdy.errors import PeerGoneError
from services.common.spdy.multiplex import Multiplexer, StreamResetError
from services.common.spdy.wire import DialedWire
from services.kubelet.adapters.upgraded import unreachable, upgrade
from services.kubelet.errors import KubeletError

_ERROR_BYTES: Final = 4096


class ForwardedPort:
    """A connection. Its opener closes it. `read` and `write` may be called by different tasks."""

    def __init__(self, wire: DialedWire, port: int) -> None:
        self._wire = wire
        self._port = port
        link = Multiplexer(wire, client=True)
        self._closing = asyncio.Event()
        headers = {"port": str(port), "requestid": "0"}
        self._error = link.open({"streamtype": "error", **headers})
        self._error.end()
        self._data = link.open({"streamtype": "data", **headers})
        self._served = asyncio.ensure_future(self._serve(link))  # noqa: TID251  # ended in `close`

    async def _serve(self, link: Multiplexer) -> None:
        """Run the connection until `close`; that the server went shows in the streams."""
        with contextlib.suppress(PeerGoneError):
            await link.serve(self._closing.wait())

    async def read(self) -> bytes:
        """Return what the program sent; b"" at its end. Raises `KubeletError` PORT_FORWARD_FAILED."""
        try:
            data = await self._data.read()
        except StreamResetError:
            data = b""
        if not data and (words := await self._fault()):
            raise KubeletError(
                words,
                code=Code.FAILED_PRECONDITION,
                reason="PORT_FORWARD_FAILED",
                metadata={"port": str(self._port)},
            )
        return data

    async def _fault(self) -> str:
        """Return what the error stream says; "" when it says nothing."""
        told = bytearray()
        with contextlib.suppress(StreamResetError):
            while len(told) < _ERROR_BYTES and (data := await self._error.read()):
                told += data
        return told.decode(errors="replace")

    async def write(self, data: bytes) -> None:
        """Send to the program; waits while it does not read. What it takes no more is dropped."""
        with contextlib.suppress(StreamResetError):
            await self._data.write(data)

    def end(self) -> None:
        """End our half."""
        self._data.end()

    async def close(self) -> None:
        """End the connection. May be repeated."""
        self._closing.set()
        try:
            await asyncio.wait({self._served})
        finally:
            self._wire.abort()


async def open_port(url: str, port: int) -> ForwardedPort:
    """Connect to a URL of a CRI server. Raises `KubeletError`."""
    headers = [("Connection", "Upgrade"), ("Upgrade", SPDY), (VERSION_HEADER, FORWARD_PROTOCOL)]
    answer = await upgrade(url, "POST", headers)
    if answer.wire is None:
        raise unreachable(f"HTTP {answer.status}")
    return ForwardedPort(answer.wire, port)
