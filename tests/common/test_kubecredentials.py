"""Who we are, from files that change and from plugins."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.kubeaccess import Access, ExecPlugin, Pem, User
from services.common.kubecredentials import Credentials
from services.common.kubeplugin import CredentialsError
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio
V1 = "client.authentication.k8s.io/v1"


def a_pair(name: str) -> tuple[bytes, bytes]:
    """Make a certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2040, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), text


def a_plugin(tmp_path: Path, status: dict[str, str], version: str = V1, code: int = 0) -> ExecPlugin:
    """Make a plugin that counts its calls in a file, and prints a credential that tells the count."""
    answer = {"apiVersion": version, "kind": "ExecCredential", "status": status}
    script = tmp_path / "plugin.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "asked = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "calls = pathlib.Path(sys.argv[1])\n"
        "count = int(calls.read_text()) + 1 if calls.exists() else 1\n"
        "calls.write_text(str(count))\n"
        f"answer = {answer!r}\n"
        "answer['status']['token'] = f\"{answer['status'].get('token', '')}-{count}\"\n"
        "print(json.dumps(answer))\n"
        f"sys.exit({code})\n"
    )
    return ExecPlugin(sys.executable, V1, args=(str(script), str(tmp_path / "calls")))


async def test_a_plugin_is_asked_again_when_what_it_gave_ends(tmp_path: Path) -> None:
    """A credential is used as long as it is good, and no longer."""
    clock = FakeClock()
    ends = (clock.now() + timedelta(minutes=5)).isoformat()
    plugin = a_plugin(tmp_path, {"token": "t", "expirationTimestamp": ends})
    credentials = Credentials(Access("https://a", User(plugin=plugin)), clock)

    first, again = await credentials.token(), await credentials.token()
    await clock.advance(295)
    later = await credentials.token()

    assert (first, again, later) == ("t-1", "t-1", "t-2")


async def test_a_refused_credential_is_asked_for_again(tmp_path: Path) -> None:
    """A 401 may mean that it was withdrawn."""
    plugin = a_plugin(tmp_path, {"token": "t"})
    credentials = Credentials(Access("https://a", User(plugin=plugin)), FakeClock())
    await credentials.token()

    assert credentials.refused()
    assert await credentials.token() == "t-2"


@pytest.mark.parametrize(
    ("version", "code", "expected"),
    [
        pytest.param("client.authentication.k8s.io/v1beta1", 0, "no usable ExecCredential", id="version"),
        pytest.param(V1, 3, "ended with 3", id="exit-code"),
    ],
)
async def test_a_plugin_that_fails_is_told_without_what_it_printed(
    tmp_path: Path, version: str, code: int, expected: str
) -> None:
    """What it prints is secret, also when it is wrong."""
    plugin = a_plugin(tmp_path, {"token": "s3cret"}, version, code)

    with pytest.raises(CredentialsError, match=expected) as caught:
        await Credentials(Access("https://a", User(plugin=plugin)), FakeClock()).token()

    assert "s3cret" not in str(caught.value)


async def test_certificates_are_loaded_again_when_their_files_change(tmp_path: Path) -> None:
    """A certificate that was renewed is used without a restart."""
    authority = tmp_path / "ca.crt"
    certificate, key = tmp_path / "c.crt", tmp_path / "c.key"
    for name in ("one", "two-longer-name"):
        cert, private = a_pair(name)
        authority.write_bytes(cert)
        certificate.write_bytes(cert)
        key.write_bytes(private)
        if name == "one":
            user = User(certificate=Pem(file=certificate), key=Pem(file=key))
            credentials = Credentials(Access("https://a", user, Pem(file=authority)), FakeClock())
            first = credentials.tls()
            assert credentials.tls() is first

    assert credentials.tls() is not first


async def test_certificates_may_be_data(tmp_path: Path) -> None:
    """They never touch the disk."""
    cert, private = a_pair("node")
    user = User(certificate=Pem(data=cert), key=Pem(data=private))

    context = Credentials(Access("https://a", user, Pem(data=cert)), FakeClock()).tls()

    assert context.cert_store_stats()["x509"] == 1


async def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """Whoever mounts it sees what to mend."""
    access = Access("https://a", User(token_file=tmp_path / "token"), Pem(file=tmp_path / "ca.crt"))
    credentials = Credentials(access, FakeClock())

    with pytest.raises(CredentialsError, match="token cannot be read: No such file"):
        await credentials.token()
    with pytest.raises(CredentialsError, match="No such file"):
        credentials.tls()


async def test_nothing_secret_shows() -> None:
    """A value in a traceback must not tell."""
    user = User(token="s3cret", key=Pem(data=b"s3cret"), plugin=ExecPlugin("x", V1, env=(("A", "s3cret"),)))

    assert "s3cret" not in repr(Access("https://a", user))
