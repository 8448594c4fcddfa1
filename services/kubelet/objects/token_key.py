"""The key that signs tokens of service accounts, and its public half. Blocks.

A module of its own, so that only a node that signs tokens loads what signs: 10 MB.
Source: RFC 7518 (ES256), RFC 7517 (JSON Web Key Set).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common import failpoints

KEY_FILE, _SET_FILE = "token-key.pem", "token-keys.json"


class TokenKey:
    """A key of the curve P-256."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def sign(self, body: Mapping[str, Any]) -> str:
        """Return a JSON Web Token of these claims."""
        return jwt.encode(dict(body), self._key, algorithm="ES256", headers={"kid": _key_id(self._key)})


def take(state: Path, making: failpoints.Step) -> TokenKey:
    """Read the key of a state directory; make it where there is none. Raises `OSError`, `ValueError`."""
    return TokenKey(_load(state) or _make(state, making))


def _load(state: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        data = (state / KEY_FILE).read_bytes()
    except FileNotFoundError:
        return None
    key = serialization.load_pem_private_key(data, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("it is no key of the curve P-256")
    _publish(state, key)
    return key


def _make(state: Path, making: failpoints.Step) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with making:
        _replace(state / KEY_FILE, data, 0o600)
    making.recorded_in_thread()
    _publish(state, key)
    return key


def _publish(state: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write the public half, unless it is there."""
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    keys = [{**public, "use": "sig", "alg": "ES256", "kid": _key_id(key)}]
    data = json.dumps({"keys": keys}, indent=1).encode()
    path = state / _SET_FILE
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
