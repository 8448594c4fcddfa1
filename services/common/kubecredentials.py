"""Who we are at an API server, as of now: the token to send and the TLS context to use.

Files are read again when they change, a plugin is asked again when what it gave ends or was
refused.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from services.common.clock import Clock
from services.common.kubeaccess import Access, ExecPlugin, Pem
from services.common.kubeplugin import CredentialsError, Given, ask

# What a credential must be good for when a request begins.
_LEEWAY = timedelta(seconds=10)
_Stamp = tuple[tuple[int, int, int], ...]


class Credentials:
    """The credentials of one client."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._given: Given | None = None
        self._asking = asyncio.Lock()
        self._token: tuple[_Stamp, str] = ((), "")
        self._tls: tuple[_Stamp, Given | None, ssl.SSLContext] | None = None

    async def token(self) -> str:
        """Return the bearer token; "" when there is none. Raises `CredentialsError`."""
        user = self._access.user
        if user.plugin is not None:
            await self._ask(user.plugin)
        if user.token_file is not None:
            return self._file_token(user.token_file)
        if self._given is not None and self._given.token:
            return self._given.token
        return user.token

    def refused(self) -> bool:
        """Hear that the server did not take us (401). Tells whether asking again may help."""
        self._token = ((), "")
        had, self._given = self._given, None
        return had is not None or self._access.user.token_file is not None

    def tls(self) -> ssl.SSLContext:
        """Return the TLS context; the same one as long as its files do not change.

        Raises `CredentialsError`.
        """
        access, given = self._access, self._given
        certificate = given.certificate if given and given.certificate else access.user.certificate
        key = given.key if given and given.certificate else access.user.key
        try:
            stamp = _stamp(*(pem.file for pem in (access.authority, certificate, key) if pem.file))
            if self._tls is None or self._tls[:2] != (stamp, given):
                self._tls = (stamp, given, _context(access, certificate, key))
        except (OSError, ValueError) as error:
            what = getattr(error, "strerror", "") or "is not usable PEM"
            where = getattr(error, "filename", "") or "of the kubeconfig"
            raise CredentialsError(f"The certificates {where} cannot be used: {what}") from error
        return self._tls[2]

    def _file_token(self, path: Path) -> str:
        try:
            stamp = _stamp(path)
            if self._token[0] != stamp:
                self._token = (stamp, path.read_text().strip())
        except (OSError, ValueError) as error:
            what = getattr(error, "strerror", "") or "is not text"
            raise CredentialsError(f"The token file {path} cannot be read: {what}") from None
        return self._token[1]

    async def _ask(self, plugin: ExecPlugin) -> None:
        async with self._asking:
            given = self._given
            if given is None or (given.expires is not None and given.expires - _LEEWAY < self._clock.now()):
                self._given = await ask(plugin, self._access)


def _stamp(*files: Path) -> _Stamp:
    found = [file.stat() for file in files]
    return tuple((at.st_mtime_ns, at.st_ino, at.st_size) for at in found)


def _context(access: Access, certificate: Pem, key: Pem) -> ssl.SSLContext:
    context = (
        ssl.create_default_context() if not access.authority else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    # Authorities of clusters may lack what newer Pythons demand by default.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if access.authority:
        with _file(access.authority) as path:
            context.load_verify_locations(cafile=path)
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate:
        with _file(certificate) as path, _file(key) as key_path:
            context.load_cert_chain(path, key_path)
    return context


@contextmanager
def _file(pem: Pem) -> Iterator[str]:
    """Give PEM text a path, in memory alone where it is data."""
    if pem.file is not None:
        yield str(pem.file)
        return
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem.data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
