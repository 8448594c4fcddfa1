"""Credentials for a registry: taken from a request, kept from every other host and from every text. Pure.

Source: the CRI's `AuthConfig`, and the `X-Registry-Auth` header of the Docker Engine API.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.errors import invalid
from services.kubelet.cri.reference import HUB, hub_or

_HUB_ADDRESS = "https://index.docker.io/v1/"
_HIDDEN = "***"
# Shorter ones are words of every message, and guessed at once.
_LEAST_SECRET = 4


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Who pulls. Its text never shows the values."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({_HIDDEN})"

    def header(self, host: str) -> str:
        """Write the engine's `X-Registry-Auth` for a registry."""
        values = {
            "username": self.username,
            "password": self.password,
            "identitytoken": self.identity_token,
            "registrytoken": self.registry_token,
            "serveraddress": _HUB_ADDRESS if host == HUB else host,
        }
        kept = {name: value for name, value in values.items() if value}
        return base64.urlsafe_b64encode(json.dumps(kept).encode()).decode()

    def scrub(self, text: str) -> str:
        """Take the secrets out of a text of others: a registry may repeat what it was told."""
        pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode() if self.password else ""
        for secret in (pair, self.password, self.identity_token, self.registry_token):
            if len(secret) >= _LEAST_SECRET:
                text = text.replace(secret, _HIDDEN)
        return text


def from_request(auth: pb.AuthConfig, host: str) -> Credentials | None:
    """Take what a request brings for `host`; None when it brings nothing, or something for another host.

    Raises REQUEST_INVALID without telling what could not be read.
    """
    if auth.server_address and _host_of(auth.server_address) != hub_or(host):
        return None
    username, password = auth.username, auth.password
    if auth.auth and not username:
        username, password = _pair(auth.auth)
    made = Credentials(username, password, auth.identity_token, auth.registry_token)
    return made if made != Credentials() else None


def from_login(found: Mapping[str, str] | None) -> Credentials | None:
    """Take what `docker login` stored for a host."""
    values = {name.lower(): value for name, value in (found or {}).items() if value}
    made = Credentials(
        values.get("username", ""), values.get("password", ""), values.get("identitytoken", "")
    )
    return made if made != Credentials() else None


def _host_of(address: str) -> str:
    return hub_or(urlsplit(address if "://" in address else f"//{address}").netloc.rpartition("@")[2])


def _pair(encoded: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(encoded, validate=True).decode().strip("\0")
    except (binascii.Error, UnicodeDecodeError):
        raise invalid("auth.auth", "is not base64 of user:password") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise invalid("auth.auth", "is not base64 of user:password")
    return username, password
