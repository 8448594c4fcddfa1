"""Node ports on localhost, over real loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.common.localports import LocalForwarder
from services.proxy.core.model import Endpoint
from tests.lab.ports import free_port
from tests.waiting import until

pytestmark = pytest.mark.asyncio


def an_endpoint(port: int) -> Endpoint:
    """Make an endpoint on loopback."""
    return Endpoint(
        "u",
        "web",
        "127.0.0.1",
        port,
        used=True,
        ready=True,
        serving=True,
        terminating=False,
        reason="",
        message="",
    )


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[Endpoint]:
    """Serve an echo over TCP and UDP on one port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: object) -> None:
            self.transport.sendto(data, addr)  # type: ignore[attr-defined]  # a datagram transport

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", port))
    yield an_endpoint(port)
    transport.close()
    server.close()
    # The handlers of ended connections.
    await until(lambda: len(asyncio.all_tasks()) == 1, 5)


@pytest_asyncio.fixture
async def forwarder() -> AsyncIterator[LocalForwarder]:
    """Give a forwarder and end it."""
    made = LocalForwarder()
    yield made
    await made.close()


async def test_bytes_go_both_ways_until_both_sides_end(forwarder: LocalForwarder, echo: Endpoint) -> None:
    """A megabyte comes back whole after our side has ended."""
    port = free_port()
    await forwarder.serve({("tcp", port): [echo]})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x" * (1 << 20))
    writer.write_eof()
    async with asyncio.timeout(10):
        data = await reader.read(-1)
    writer.close()
    await writer.wait_closed()

    assert data == b"x" * (1 << 20)


async def test_datagrams_come_back_to_their_sender(forwarder: LocalForwarder, echo: Endpoint) -> None:
    """Each client has a flow of its own."""
    port = free_port()
    await forwarder.serve({("udp", port): [echo]})
    loop = asyncio.get_running_loop()
    answers = []
    for text in (b"one", b"two"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", port))
            async with asyncio.timeout(5):
                await loop.sock_sendall(client, text)
                answers.append(await loop.sock_recv(client, 100))

    assert answers == [b"one", b"two"]


async def test_datagrams_of_one_client_follow_the_endpoints(
    forwarder: LocalForwarder, echo: Endpoint
) -> None:
    """Its flow does not stay with one that is gone, nor with one that could not be reached at first."""
    port = free_port()
    silent, refused = an_endpoint(free_port()), an_endpoint(9)._replace(address="255.255.255.255")
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening,
    ):
        client.setblocking(False)
        listening.setblocking(False)
        listening.bind((silent.address, silent.port))
        client.bind(("127.0.0.1", 0))
        async with asyncio.timeout(5):
            for endpoint in (refused, silent):
                await forwarder.serve({("udp", port): [endpoint]})
                await loop.sock_sendto(client, b"to it", ("127.0.0.1", port))
            heard = await loop.sock_recv(listening, 100)
            await forwarder.serve({("udp", port): [echo]})
            await loop.sock_sendto(client, b"elsewhere", ("127.0.0.1", port))
            answer = await loop.sock_recv(client, 100)

    assert (heard, answer) == (b"to it", b"elsewhere")


async def test_a_port_that_is_taken_is_a_reason_and_no_fault(
    forwarder: LocalForwarder, echo: Endpoint
) -> None:
    """Others are served, and it is tried again the next time."""
    port, other = free_port(), free_port()
    with socket.create_server(("127.0.0.1", port)):
        await forwarder.serve({("tcp", port): [echo], ("tcp", other): [echo]})
        taken = forwarder.fault("tcp", port)
    await forwarder.serve({("tcp", port): [echo], ("tcp", other): [echo]})

    assert f"127.0.0.1:{port} cannot be had" in taken
    assert (forwarder.fault("tcp", port), forwarder.fault("tcp", other)) == ("", "")


async def test_without_endpoints_a_connection_ends_at_once(forwarder: LocalForwarder) -> None:
    """As a refused one."""
    port = free_port()
    await forwarder.serve({("tcp", port): []})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.transport.abort()


async def test_a_port_that_is_no_longer_wanted_is_given_back(
    forwarder: LocalForwarder, echo: Endpoint
) -> None:
    """Nothing listens on it any more."""
    port = free_port()
    await forwarder.serve({("tcp", port): [echo]})
    await forwarder.serve({})
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
