"""What the kubelet shows its clients: a certificate, and which authorities' certificates it asks of them.

Files are looked at when a client connects, once a second at most; when they cannot be used, that is told and
what was used before stays in use. Without files of its own the kubelet makes a self-signed certificate.

Source: kubernetes cmd/kubelet/app/server.go `InitializeTLS`, apiserver dynamic certificates.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.common.clock import Clock
from services.common.errors import Code
from services.common.logs import get_logger
from services.kubelet.errors import KubeletError

log = get_logger(__name__)
LIFETIME: Final = timedelta(days=365)
# Renewed when less than this share of its life is left.
_LAST_SHARE: Final = 0.2
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificate, key and the clients' authorities lie. No `authorities` asks for no certificate."""

    certificate: Path
    key: Path
    authorities: Path | None = None


class ServingContext(ssl.SSLContext):
    """A TLS context that knows which reading of the authorities it is of."""

    generation: int = 0


class Serving:
    """Keeps the TLS context that new connections get. `renew` may make the certificate anew first."""

    def __init__(self, files: TlsFiles, clock: Clock, renew: Callable[[], None] | None = None) -> None:
        self._files = files
        self._clock = clock
        self._renew = renew
        self._seen: tuple[object, ...] = ()
        self._authorities = b""
        self._looked_at = clock.monotonic()
        if renew is not None:
            renew()
        self._current = self._read()
        # What the server is made with; each connection gets the newest from it.
        self.context = self._build(self._authorities)
        self.context.sni_callback = self._choose

    @property
    def generation(self) -> int:
        """Grows each time that the authorities change."""
        return self._current.generation

    def look(self) -> None:
        """Take files that have changed; called for each connection."""
        now = self._clock.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            if self._renew is not None:
                self._renew()
            if self._marks() != self._seen:
                self._current = self._read()
                log.info("Took new TLS files", generation=self.generation)
        except (OSError, KubeletError) as error:
            log.warning("Kept the former TLS files", error=str(error))

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        self.look()
        connection.context = self._current

    def _read(self) -> ServingContext:
        """Make a context of what the files say. Raises `TLS_UNUSABLE`."""
        seen = self._marks()
        authorities = self._read_authorities()
        context = self._build(authorities)
        changed = bool(self._seen) and authorities != self._authorities
        context.generation = (self._current.generation + changed) if self._seen else 0
        self._seen, self._authorities = seen, authorities
        return context

    def _read_authorities(self) -> bytes:
        path = self._files.authorities
        try:
            return path.read_bytes() if path is not None else b""
        except OSError as error:
            raise _unusable(str(path), error.strerror or str(error)) from error

    def _build(self, authorities: bytes) -> ServingContext:
        files = self._files
        context = ServingContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session would bring back a certificate that nobody looked at again.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            raise _unusable(f"{files.certificate} with {files.key}", str(error)) from error
        if files.authorities is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            # Each certificate of the file is trusted, one that another has signed, too.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            try:
                context.load_verify_locations(cadata=authorities.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise _unusable(str(files.authorities), f"holds no certificates: {error}") from error
        return context

    def _marks(self) -> tuple[object, ...]:
        files = self._files
        return tuple(_mark(path) for path in (files.certificate, files.key, files.authorities) if path)


def _mark(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _unusable(what: str, why: str) -> KubeletError:
    return KubeletError(
        f"Cannot serve TLS with {what}: {why}",
        code=Code.FAILED_PRECONDITION,
        reason="TLS_UNUSABLE",
        metadata={"files": what},
    )


class OwnCertificate:
    """A self-signed certificate and its key in one file of mode 0600, made anew before its end."""

    def __init__(self, path: Path, names: Callable[[], Sequence[str]], clock: Clock) -> None:
        self.path = path
        self._names = names
        self._clock = clock

    def renew(self) -> None:
        """Make it unless there is one of our names that is good for long enough. Raises `TLS_UNUSABLE`."""
        names = tuple(dict.fromkeys(name for name in self._names() if name))
        now = self._clock.now()
        if self._good(names, now):
            return
        try:
            _write(self.path, _make(names, now))
        except OSError as error:
            raise _unusable(str(self.path), error.strerror or str(error)) from error
        log.info("Made a certificate", path=str(self.path), names=list(names))

    def _good(self, names: Sequence[str], now: datetime) -> bool:
        try:
            content = self.path.read_bytes()
            found = x509.load_pem_x509_certificate(content)
            key = serialization.load_pem_private_key(content, None)
            listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
            return False
        begin, end = found.not_valid_before_utc, found.not_valid_after_utc
        fresh = begin <= now and (end - now) > (end - begin) * _LAST_SHARE
        return fresh and listed == _alternatives(names) and found.public_key() == key.public_key()


def _alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general(name) for name in names])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _make(names: Sequence[str], now: datetime) -> bytes:
    """Make a certificate for a server of these names, the first of which is its common name."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Common names end at 64 characters.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{names[0]}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=False,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of clients may be behind.
        .not_valid_before(now.astimezone(UTC) - timedelta(hours=1))
        .not_valid_after(now.astimezone(UTC) + LIFETIME)
        .add_extension(_alternatives(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret + certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, content: bytes) -> None:
    """Put a secret in its place, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
