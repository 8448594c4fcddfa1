"""Who asks: by a client's certificate first, then by a bearer token. Nobody is anonymous.

A certificate's common name is the user, its organizations are the groups. One that was looked at with
authorities that have changed since does not count. Tokens are shown to whoever knows them, and kept as keyed
hashes alone.

Source: kubernetes apiserver pkg/authentication/{request/x509,request/bearertoken,request/websocket}.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from aiohttp import web

from services.common.clock import Clock
from services.common.security import token_matches
from services.kubelet.core.access import User
from services.kubelet.web.remembered import Remembered

TOKEN_PROTOCOL: Final = "base64url.bearer.authorization.k8s.io."
NODE_TOKEN_USER: Final = User("tripod:node-token", ("tripod:node-administrators",))
KNOWN_SECONDS: Final = 120.0
UNKNOWN_SECONDS: Final = 10.0
_TOKEN_BYTES: Final = 64 << 10
Review = Callable[[str], Awaitable[User | None]]


class Authenticator:
    """Tells users. `generation` grows when the authorities change, `review` knows tokens."""

    def __init__(self, review: Review, generation: Callable[[], int], clock: Clock) -> None:
        self._review = review
        self._generation = generation
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._users: Remembered[bytes, User | None] = Remembered(
            clock, lambda user: KNOWN_SECONDS if user else UNKNOWN_SECONDS
        )

    async def user(self, http: web.Request) -> User | None:
        """Return who asks; None for nobody. Raises `TripodError` when it cannot be told."""
        found = self._by_certificate(http)
        token = bearer(http.headers.get("Authorization", ""), _protocols(http))
        if found is not None or token is None or len(token) > _TOKEN_BYTES:
            return found
        key = hmac.digest(self._secret, token.encode(), hashlib.sha256)
        return await self._users.get(key, lambda: self._review(token))

    def _by_certificate(self, http: web.Request) -> User | None:
        connection = http.get_extra_info("ssl_object")
        certificate = connection.getpeercert() if connection is not None else None
        if not certificate:
            return None
        now = self._generation()
        current = getattr(connection.context, "generation", now) == now
        # Brought back from a time before the authorities changed.
        resumed = bool(connection.session_reused) and now > 0
        ends = ssl.cert_time_to_seconds(certificate["notAfter"])
        if not current or resumed or ends < self._clock.now().timestamp():
            return None
        return named(certificate)


def named(certificate: Mapping[str, Any]) -> User | None:
    """Return whom a certificate names, as `ssl` shows one; None without a common name."""
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    names = [value for kind, value in pairs if kind == "commonName"]
    if not names or not names[-1]:
        return None
    return User(names[-1], tuple(value for kind, value in pairs if kind == "organizationName"))


def bearer(authorization: str, protocols: Iterator[str]) -> str | None:
    """Return the token of a request: of its header, or in a WebSocket's subprotocols."""
    kind, _, token = authorization.strip().partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    for offer in protocols:
        if offer.startswith(TOKEN_PROTOCOL):
            return _decoded(offer.removeprefix(TOKEN_PROTOCOL))
    return None


def _decoded(text: str) -> str | None:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode() or None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _protocols(http: web.Request) -> Iterator[str]:
    if http.headers.get("Upgrade", "").lower() == "websocket":
        for line in http.headers.getall("Sec-WebSocket-Protocol", []):
            yield from (offer.strip() for offer in line.split(","))


def by_node_token(expected: str) -> Review:
    """Return a review that knows the node's token alone."""

    async def review(token: str) -> User | None:
        return NODE_TOKEN_USER if token_matches(token, expected) else None

    return review
