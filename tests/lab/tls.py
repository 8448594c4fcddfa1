"""Authorities, certificates and TLS clients for tests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key in one file."""

    path: Path

    def client(self) -> ssl.SSLContext:
        """Make a client that shows it, and takes any server."""
        context = any_server()
        context.load_cert_chain(self.path)
        return context


class Authority:
    """Signs certificates, which lie in a folder."""

    def __init__(self, folder: Path, name: str = "clients") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._subject, self._key, timedelta(days=1)).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.pem = made.sign(self._key, hashes.SHA256()).public_bytes(_PEM)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.pem)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta
    ) -> x509.CertificateBuilder:
        begin = datetime.now(UTC) - timedelta(hours=1)  # noqa: TID251  # certificates live in real time
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(hours=1) + life)
        )

    def issue(
        self, user: str, *groups: str, life: timedelta = timedelta(hours=1), server: bool = False
    ) -> Pair:
        """Sign a certificate of a user ("" names nobody), or of a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        who = [x509.NameAttribute(NameOID.COMMON_NAME, user)] if user else []
        subject = x509.Name([*names, *who])
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        made = self._builder(subject, key, life).add_extension(
            x509.ExtendedKeyUsage([purpose]), critical=False
        )
        secret = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = self._folder / f"{user.replace(':', '-')}.pair.pem"
        path.write_bytes(secret + made.sign(self._key, hashes.SHA256()).public_bytes(_PEM))
        return Pair(path)


def any_server() -> ssl.SSLContext:
    """Make a client that takes any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def plain_door(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Listen without TLS on a port of loopback, and pass bytes to a TLS port: for clients that know none."""

    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        await _join(reader, writer, inner, outer)

    async with _listening(enter) as number:
        yield number


@asynccontextmanager
async def spdy_door(url: str) -> AsyncIterator[str]:
    """Stand before a server and refuse WebSockets, as one that knows none; yields the URL to use instead."""
    place = urlsplit(url)

    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"upgrade: websocket" in head.lower():
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        inner, outer = await asyncio.open_connection(place.hostname, place.port)
        outer.write(head)
        await _join(reader, writer, inner, outer)

    async with _listening(enter) as number:
        yield f"http://127.0.0.1:{number}"


@asynccontextmanager
async def _listening(
    enter: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """Listen on a port of loopback for a block."""
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await enter(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inner: asyncio.StreamReader,
    outer: asyncio.StreamWriter,
) -> None:
    """Copy both ways until either side ends, then close both."""
    pumps = {
        asyncio.ensure_future(_copy(reader, outer)),  # noqa: TID251  # ended below
        asyncio.ensure_future(_copy(inner, writer)),  # noqa: TID251  # ended below
    }
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        outer.close()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return
