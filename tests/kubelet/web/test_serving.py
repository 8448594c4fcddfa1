"""The kubelet's own certificate."""

from __future__ import annotations

import asyncio
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from services.kubelet.adapters.serving import OwnCertificate, Serving, TlsFiles
from services.kubelet.core.listening import address, split_address
from services.kubelet.errors import KubeletError
from tests.fakes.clock import FakeClock
from tests.lab.tls import Authority


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_it_is_made_once_for_the_nodes_names_and_kept_secret(tmp_path: Path) -> None:
    """Mode 0600; names and addresses are told apart."""
    own = OwnCertificate(
        tmp_path / "pki/kubelet.pem", lambda: ["node-1", "10.0.0.7", "", "node-1"], FakeClock()
    )
    own.renew()
    first = own.path.read_bytes()
    own.renew()
    names = _read(own.path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert first == own.path.read_bytes()
    assert stat.S_IMODE(own.path.stat().st_mode) == 0o600
    assert names.get_values_for_type(x509.DNSName) == ["node-1"]
    assert [str(found) for found in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


@pytest.mark.asyncio
async def test_it_is_renewed_before_its_end_and_for_new_names(tmp_path: Path) -> None:
    """When a fifth of its life is left; a broken file is made anew, too."""
    clock, names = FakeClock(), ["node-1"]
    own = OwnCertificate(tmp_path / "kubelet.pem", lambda: names, clock)
    own.renew()
    serials = [_read(own.path).serial_number]

    async def again(seconds: float) -> None:
        await clock.advance(seconds)
        own.renew()
        serials.append(_read(own.path).serial_number)

    await again(timedelta(days=200).total_seconds())
    await again(timedelta(days=100).total_seconds())
    names.append("10.0.0.8")
    await again(0)
    own.path.write_text("rubbish")
    await again(0)

    assert serials[0] == serials[1]
    assert len(set(serials)) == 4


@pytest.mark.asyncio
async def test_a_new_pair_is_taken_and_half_a_pair_is_not(tmp_path: Path) -> None:
    """While the files are exchanged they do not fit."""
    clock = FakeClock()
    authority = await asyncio.to_thread(Authority, tmp_path)
    pairs = [authority.issue(name, server=True).path.read_bytes() for name in ("one", "two")]
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    for path in (certificate, key):
        path.write_bytes(pairs[0])
    serving = Serving(TlsFiles(certificate, key), clock)
    before = serving._current
    certificate.write_bytes(pairs[1])
    await clock.advance(2)
    serving.look()
    assert serving._current is before
    key.write_bytes(pairs[1])
    await clock.advance(2)
    serving.look()

    assert serving._current is not before
    assert serving.generation == 0


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    """At the start, with their names."""
    with pytest.raises(KubeletError, match=r"Cannot serve TLS with .*none.pem"):
        Serving(TlsFiles(tmp_path / "none.pem", tmp_path / "none.pem"), FakeClock())


def test_the_port_is_off_alone_and_on_in_a_cluster() -> None:
    """Unless a setting says otherwise."""
    assert address("", in_cluster=False) == ""
    assert address("", in_cluster=True) == "0.0.0.0:10250"
    assert address("127.0.0.1:1", in_cluster=True) == "127.0.0.1:1"
    assert split_address("[::1]:10250") == ("::1", 10250)
    assert split_address(":10250") == ("", 10250)
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address("host:https")
