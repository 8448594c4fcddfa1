"""Ports on 127.0.0.1, forwarded to pods in user space.

A packet from loopback cannot be routed to a pod without `route_localnet`, which
would open the host's loopback services to its neighbours. Each connection takes an
endpoint at random, as the kernel's rules do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from services.common.logs import get_logger

log = get_logger(__name__)
Key = tuple[str, int]
_CHUNK_BYTES = 65_536
_CONNECT_SECONDS = 5.0
_FLOW_SECONDS = 60.0
_FLOW_LIMIT = 1000
_CONNECTION_LIMIT = 1000


class Target(Protocol):
    """Where a connection is forwarded to."""

    @property
    def address(self) -> str:
        """Its IP address."""
        ...

    @property
    def port(self) -> int:
        """Its port."""
        ...


class LocalForwarder:
    """Listens on 127.0.0.1; `close` ends everything."""

    def __init__(self) -> None:
        self._targets: dict[Key, Sequence[Target]] = {}
        self._listeners: dict[Key, Any] = {}
        self._faults: dict[Key, str] = {}
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    def fault(self, protocol: str, port: int) -> str:
        """Return why a port is not served."""
        return self._faults.get((protocol, port), "")

    async def serve(self, wanted: Mapping[Key, Sequence[Target]]) -> None:
        """Listen on exactly these ports; one that cannot be had is tried again the next time."""
        for key in [key for key in self._listeners if key not in wanted]:
            self._listeners.pop(key).close()
        self._targets = dict(wanted)
        self._faults = {}
        for key in wanted:
            if key not in self._listeners:
                await self._listen(key)

    async def _listen(self, key: Key) -> None:
        protocol, port = key
        try:
            if protocol == "tcp":
                self._listeners[key] = await asyncio.start_server(self._handler(key), "127.0.0.1", port)
            else:
                loop = asyncio.get_running_loop()
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _UdpFlows(lambda: self._targets.get(key) or ()), local_addr=("127.0.0.1", port)
                )
                self._listeners[key] = transport
        except OSError as error:
            self._faults[key] = f"127.0.0.1:{port} cannot be had: {error.strerror}"
            log.warning("Could not serve a port on localhost", protocol=protocol, port=port, error=str(error))

    def _handler(self, key: Key) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            target = _chosen(self._targets.get(key) or ())
            if target is None or len(self._connections) >= _CONNECTION_LIMIT:
                writer.transport.abort()
                return
            task = asyncio.current_task()
            assert task is not None, "a handler runs in a task"
            self._connections[task] = writer
            try:
                await _forward(reader, writer, target)
            finally:
                del self._connections[task]
                writer.close()

        return handle

    async def close(self) -> None:
        """End everything."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        running = dict(self._connections)
        for writer in running.values():
            writer.transport.abort()
        if running:
            await asyncio.wait(running.keys(), timeout=1.0)


def _chosen(targets: Sequence[Target]) -> Target | None:
    return random.choice(targets) if targets else None


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target) -> None:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            far_reader, far_writer = await asyncio.open_connection(target.address, target.port)
    except (OSError, TimeoutError):
        writer.transport.abort()
        return
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(reader, far_writer))
            group.create_task(_pump(far_reader, writer))
    finally:
        far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction; its end is passed on, the other direction goes on."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


class _UdpFlows(asyncio.DatagramProtocol):
    """One socket toward an endpoint for each client, forgotten after a quiet minute or with its endpoint."""

    def __init__(self, targets: Callable[[], Sequence[Target]]) -> None:
        self._targets = targets
        self._transport: Any = None
        self._flows: dict[Any, _UdpFlow] = {}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        targets, flow = self._targets(), self._flows.get(addr)
        if flow is not None and flow.place not in [(target.address, target.port) for target in targets]:
            flow.close()
            flow = None
        if flow is None:
            target = _chosen(targets)
            if target is None or len(self._flows) >= _FLOW_LIMIT:
                return
            flow = self._flows[addr] = _UdpFlow(
                self._transport, addr, target, lambda: self._flows.pop(addr, None)
            )
        flow.send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        for flow in list(self._flows.values()):
            flow.close()


class _UdpFlow(asyncio.DatagramProtocol):
    """One client's datagrams to one endpoint and back."""

    def __init__(self, near: Any, client: Any, target: Target, forget: Callable[[], object]) -> None:
        self._near = near
        self._client = client
        self._forget = forget
        self._far: Any = None
        self._early: list[bytes] = []
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_FLOW_SECONDS, self.close)
        self.place = (target.address, target.port)
        # Held by the loop until it is connected; its result arrives in `connection_made`.
        self._opening = self._loop.create_task(
            self._loop.create_datagram_endpoint(lambda: self, remote_addr=self.place)
        )
        self._opening.add_done_callback(self._opened)

    def send(self, data: bytes) -> None:
        """Pass a datagram on; the first few wait for the socket."""
        self._timer.cancel()
        self._timer = self._loop.call_later(_FLOW_SECONDS, self.close)
        if self._far is not None:
            self._far.sendto(data)
        elif len(self._early) < 16:
            self._early.append(data)

    def _opened(self, opening: asyncio.Task[Any]) -> None:
        # No route, say: the client's next datagram tries again.
        if not opening.cancelled() and opening.exception() is not None:
            self.close()

    def connection_made(self, transport: Any) -> None:
        self._far = transport
        for data in self._early:
            transport.sendto(data)
        self._early.clear()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._near.sendto(data, self._client)

    def error_received(self, exc: Exception) -> None:
        self.close()

    def close(self) -> None:
        """End the flow."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._opening.cancel()
        self._forget()
        if self._far is not None:
            self._far.close()
