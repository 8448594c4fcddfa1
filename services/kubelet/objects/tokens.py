"""Tokens of service accounts on a standalone node: signed by a key of the node's own.

The key (ES256) is made at the first need, and stays in the state directory for its owner
alone. Beside it lies `token-keys.json`, a JSON Web Key Set that anyone may read: whoever
takes such a token checks it with that.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import Code
from services.kubelet.core.model import ServiceAccount
from services.kubelet.core.token import Life, claims
from services.kubelet.errors import KubeletError
from services.kubelet.ports import Token, TokenRequest

if TYPE_CHECKING:
    from services.kubelet.objects.token_key import TokenKey

_KEY = failpoints.step("token.key")


class TokenIssuer:
    """Signs tokens. `issuer` stands in each of them."""

    def __init__(self, state: Path, issuer: str, clock: Clock) -> None:
        self._state = state
        self._issuer = issuer
        self._clock = clock
        self._key: TokenKey | None = None
        self._taking = Lock()

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
        return Token(self._signing_key().sign(body), datetime.fromtimestamp(life.expires, UTC))

    def _signing_key(self) -> TokenKey:
        # Imported here: what signs costs memory that a node without tokens need not have.
        from services.kubelet.objects import token_key

        with self._taking:
            try:
                self._key = self._key or token_key.take(self._state, _KEY)
            except (OSError, ValueError) as error:
                raise KubeletError(
                    f"The key for tokens, {self._state / token_key.KEY_FILE}, cannot be used: {error}",
                    code=Code.FAILED_PRECONDITION,
                    reason="TOKEN_KEY_UNUSABLE",
                ) from error
            return self._key
