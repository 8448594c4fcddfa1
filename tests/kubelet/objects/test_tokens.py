"""Tokens that a standalone node signs itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jwt
import pytest

from services.common.errors import TripodError
from services.kubelet.core.model import ServiceAccount
from services.kubelet.objects.tokens import TokenIssuer
from services.kubelet.ports import Token, TokenRequest
from tests.builders import a_pod
from tests.fakes.clock import FakeClock

ACCOUNT = ServiceAccount("u-robot", "default", "robot")


def issued(state: Path, audience: str = "", seconds: int = 600) -> tuple[Token, float]:
    """Sign a token; returns it with the time."""
    clock = FakeClock()
    issuer = TokenIssuer(state, "urn:test", clock)
    request = TokenRequest(a_pod(), "robot", audience, seconds)
    return issuer.issue(request, ACCOUNT), clock.now().timestamp()


def checked(state: Path, token: Token, audience: str) -> dict[str, object]:
    """Check a token as one does who takes it: with the published keys alone."""
    (key,) = json.loads((state / "token-keys.json").read_text())["keys"]
    options: jwt.types.Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    found: dict[str, object] = jwt.decode(
        token.text, jwt.PyJWK(key), algorithms=["ES256"], audience=audience, options=options
    )
    return found


def test_a_token_says_for_whom_and_for_what_pod(tmp_path: Path) -> None:
    """With the claims of Kubernetes, checked by the published key set."""
    token, now = issued(tmp_path, "me")

    claims = checked(tmp_path, token, "me")

    assert claims == {
        "iss": "urn:test",
        "sub": "system:serviceaccount:default:robot",
        "aud": ["me"],
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now) + 600,
        "kubernetes.io": {
            "namespace": "default",
            "pod": {"name": "web", "uid": "uid-1"},
            "serviceaccount": {"name": "robot", "uid": "u-robot"},
        },
    }
    assert token.expires == datetime.fromtimestamp(now + 600, UTC)
    assert token.text not in repr(token)


def test_the_key_outlives_a_restart_and_is_the_nodes_alone(tmp_path: Path) -> None:
    """A token of before is good after it; whoever wants none in particular gets the issuer's."""
    before, _ = issued(tmp_path)
    keys = (tmp_path / "token-keys.json").stat().st_mtime_ns
    after, _ = issued(tmp_path)

    assert checked(tmp_path, before, "urn:test")["aud"] == ["urn:test"]
    assert checked(tmp_path, after, "urn:test")
    assert (tmp_path / "token-key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "token-keys.json").stat().st_mtime_ns == keys


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_key_that_cannot_be_read_is_told_and_kept(tmp_path: Path, content: bytes) -> None:
    """Another one would make every token of before worthless."""
    (tmp_path / "token-key.pem").write_bytes(content)
    with pytest.raises(TripodError, match="cannot be used"):
        issued(tmp_path)

    assert (tmp_path / "token-key.pem").read_bytes() == content
