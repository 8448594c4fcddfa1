"""The files and commands of a cluster: keys, kubeconfigs, compose."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from tests.peers.kubernetes import build as kubernetes
from tools.cluster.certificates import Authority
from tools.cluster.layout import COMPONENTS, Layout, command, load, prepare, prepare_node, save
from tools.steps import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.cluster.yml").read_text())["services"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_compose_starts_a_component_as_the_binaries_are_started(component: str) -> None:
    """One truth for both ways."""
    layout = Layout(Path("/var/lib/tripod/cluster"), "ADDRESS")
    words = [
        word.replace("${TRIPOD_CLUSTER_ADDRESS:-127.0.0.1}", "ADDRESS")
        for word in COMPOSE[component]["entrypoint"]
    ]

    assert words == command(layout, component)


def test_images_are_of_the_release_that_the_peers_are() -> None:
    """The same control plane either way."""
    tags = {COMPOSE[name]["image"].partition(":-")[2].rstrip("}") for name in COMPONENTS[1:]}

    assert tags == {kubernetes.version(kubernetes.KUBERNETES)}
    assert kubernetes.version(kubernetes.ETCD).removeprefix("v") in COMPOSE["etcd"]["image"]


def test_only_its_owner_reads_what_is_secret(tmp_path: Path) -> None:
    """Keys, and kubeconfigs with keys in them."""
    layout = Layout(tmp_path)
    prepare(layout)
    files = prepare_node(layout, "a", "192.0.2.1")
    secret = [*layout.pki.glob("*.key"), *tmp_path.rglob("*.conf"), files.key]

    assert len(secret) >= 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_a_node_is_known_by_its_certificate(tmp_path: Path) -> None:
    """Common name and organisation are what the Node authorizer goes by."""
    layout = Layout(tmp_path)
    prepare(layout)
    files = prepare_node(layout, "a", "192.0.2.1", url="https://192.0.2.9:1")
    config = json.loads(files.kubeconfig.read_text())
    client = x509.load_pem_x509_certificate(
        base64.b64decode(config["users"][0]["user"]["client-certificate-data"])
    )
    server = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = server.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value

    assert client.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:a"
    assert client.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"
    assert isinstance(names, x509.SubjectAlternativeName)
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1"]
    assert config["clusters"][0]["cluster"]["server"] == "https://192.0.2.9:1"
    client.verify_directly_issued_by(
        x509.load_pem_x509_certificate(Authority.read(layout.pki, "ca").pair.certificate)
    )


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    """A second `make cluster-up` changes no key, and finds the address again."""
    layout = save(Layout(tmp_path, "192.0.2.7"))
    prepare(layout)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    found = load(tmp_path)
    assert found is not None
    prepare(found)

    assert found.url == "https://192.0.2.7:6443"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert load(tmp_path / "nothing") is None
