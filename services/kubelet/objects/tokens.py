"""Tokens of service accounts on a standalone node: signed by a key of the node's own.

The key (ES256) is made at the first need, and stays in the state directory for its owner
alone. Beside it lies `token-keys.json`, a JSON Web Key Set that anyone may read: whoever
takes such a token checks it with that.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import Code
from services.kubelet.core.model import ServiceAccount
from services.kubelet.core.token import Life, claims
from services.kubelet.errors import KubeletError
from services.kubelet.ports import Token, TokenRequest

_KEY = failpoints.step("token.key")
_KEY_FILE, _SET_FILE = "token-key.pem", "token-keys.json"


class TokenIssuer:
    """Signs tokens. `issuer` stands in each of them."""

    def __init__(self, state: Path, issuer: str, clock: Clock) -> None:
        self._state = state
        self._issuer = issuer
        self._clock = clock
        self._key: ec.EllipticCurvePrivateKey | None = None

    def issue(self, request: TokenRequest, account: ServiceAccount) -> Token:
        """Sign a token for a pod. Blocks; raises `KubeletError` where the key cannot be had."""
        now = self._clock.now().timestamp()
        life = Life(now, now + request.expiration_seconds)
        body = claims(
            issuer=self._issuer,
            audience=request.audience,
            life=life,
            pod=(request.pod.name, request.pod.uid),
            account=(account.name, account.uid),
            namespace=request.pod.namespace,
        )
        key = self._signing_key()
        text = jwt.encode(body, key, algorithm="ES256", headers={"kid": _key_id(key)})
        return Token(text, datetime.fromtimestamp(life.expires, UTC))

    def _signing_key(self) -> ec.EllipticCurvePrivateKey:
        if self._key is None:
            try:
                self._key = self._load() or self._make()
            except (OSError, ValueError) as error:
                raise KubeletError(
                    f"The key for tokens, {self._state / _KEY_FILE}, cannot be used: {error}",
                    code=Code.FAILED_PRECONDITION,
                    reason="TOKEN_KEY_UNUSABLE",
                ) from error
        return self._key

    def _load(self) -> ec.EllipticCurvePrivateKey | None:
        try:
            data = (self._state / _KEY_FILE).read_bytes()
        except FileNotFoundError:
            return None
        key = serialization.load_pem_private_key(data, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("it is no key of the curve P-256")
        self._publish(key)
        return key

    def _make(self) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        data = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        with _KEY:
            _replace(self._state / _KEY_FILE, data, 0o600)
        _KEY.recorded_in_thread()
        self._publish(key)
        return key

    def _publish(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Write the public half, unless it is there."""
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
        keys = [{**public, "use": "sig", "alg": "ES256", "kid": _key_id(key)}]
        data = json.dumps({"keys": keys}, indent=1).encode()
        path = self._state / _SET_FILE
        with suppress(FileNotFoundError):
            if path.read_bytes() == data:
                return
        _replace(path, data, 0o644)


def _key_id(key: ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(public).hexdigest()[:32]


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole: a kill leaves the old one, or none, or the new one."""
    fresh = path.with_name(f"{path.name}.new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    number = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(number, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
