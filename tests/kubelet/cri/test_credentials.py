"""Credentials: for one host, and in no text."""

from __future__ import annotations

import base64
import json

import pytest
from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.credentials import Credentials, from_login, from_request
from services.kubelet.cri.errors import CriError

PAIR = base64.b64encode(b"ann:pass:word").decode()


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        pytest.param(pb.AuthConfig(), None, id="nothing"),
        pytest.param(pb.AuthConfig(server_address="r.example"), None, id="an-address-alone"),
        pytest.param(
            pb.AuthConfig(username="ann", password="word"), Credentials("ann", "word"), id="user-and-password"
        ),
        pytest.param(pb.AuthConfig(auth=PAIR), Credentials("ann", "pass:word"), id="both-in-one"),
        pytest.param(
            pb.AuthConfig(auth=base64.b64encode(b"ann:word\0\0").decode()),
            Credentials("ann", "word"),
            id="padded-by-nul",
        ),
        pytest.param(
            pb.AuthConfig(username="bob", password="word", auth=PAIR),
            Credentials("bob", "word"),
            id="the-plain-ones-count",
        ),
        pytest.param(
            pb.AuthConfig(identity_token="long"), Credentials(identity_token="long"), id="identity-token"
        ),
        pytest.param(
            pb.AuthConfig(registry_token="short"), Credentials(registry_token="short"), id="registry-token"
        ),
    ],
)
def test_credentials_are_read(auth: pb.AuthConfig, expected: Credentials | None) -> None:
    """Every form that the CRI has."""
    assert from_request(auth, "r.example") == expected


@pytest.mark.parametrize(
    ("address", "host", "given"),
    [
        pytest.param("", "r.example", True, id="no-address"),
        pytest.param("r.example", "r.example", True, id="host"),
        pytest.param("https://r.example/v2/", "r.example", True, id="url"),
        pytest.param("R.Example", "r.example", True, id="case"),
        pytest.param("https://u:p@r.example", "r.example", True, id="with-a-user"),
        pytest.param("https://index.docker.io/v1/", "docker.io", True, id="hub"),
        pytest.param("registry-1.docker.io", "docker.io", True, id="hubs-registry"),
        pytest.param("r.example:5000", "r.example", False, id="another-port"),
        pytest.param("r.example.evil", "r.example", False, id="a-longer-name"),
        pytest.param("https://evil@r.example.evil/r.example", "r.example", False, id="in-the-path"),
        pytest.param("docker.io", "r.example", False, id="hub-for-another"),
    ],
)
def test_credentials_go_to_their_host_alone(address: str, host: str, given: bool) -> None:
    """An address that is another host's gives nothing."""
    auth = pb.AuthConfig(username="ann", password="word", server_address=address)

    assert (from_request(auth, host) is not None) == given


@pytest.mark.parametrize("broken", ["%%%", base64.b64encode(b"no colon").decode(), "w7/Dvw=", "/w=="])
def test_what_cannot_be_read_is_not_repeated(broken: str) -> None:
    """It may be a password all the same."""
    with pytest.raises(CriError) as refused:
        from_request(pb.AuthConfig(auth=broken), "r.example")

    assert refused.value.reason == "REQUEST_INVALID"
    assert broken not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_engine_gets_what_there_is() -> None:
    """Under its names, Docker Hub under its old address."""
    header = Credentials("ann", "wörd").header("docker.io")

    assert json.loads(base64.urlsafe_b64decode(header)) == {
        "username": "ann",
        "password": "wörd",
        "serveraddress": "https://index.docker.io/v1/",
    }


def test_a_stored_login_is_taken() -> None:
    """With the names that `config.json` and helpers use."""
    assert from_login(None) is None
    assert from_login({"Username": "ann", "password": "word"}) == Credentials("ann", "word")
    assert from_login({"IdentityToken": "long"}) == Credentials(identity_token="long")


def test_secrets_are_taken_out_of_texts() -> None:
    """The password, the tokens, and the pair as a header has it."""
    secret = Credentials("ann", "hunter22", "identity", "registry")
    pair = base64.b64encode(b"ann:hunter22").decode()

    told = secret.scrub(f"ann: bad password hunter22, {pair}, identity, registry")

    assert told == "ann: bad password ***, ***, ***, ***"
    assert repr(secret) == "Credentials(***)"
    assert "hunter22" not in f"{secret}"
