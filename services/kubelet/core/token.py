"""Tokens of service accounts: when they are renewed, and what stands in them. Pure.

Source: the kubelet's token manager: renewed at 80 % of the life or after 24 hours, with
a jitter of up to 10 s. A token that an API server makes good for a year, for clients that
read it once, says by `warnafter` what its life is. The signature is not looked at: whoever
takes a token does that.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from dataclasses import dataclass

RENEW_SECONDS = 24 * 3600
JITTER_SECONDS = 10.0
_RENEW_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Life:
    """When a token was issued and when it ends, in seconds since 1970; and for whom it is.

    It is renewed as if it ended at `warn_after`, where that is not 0.
    """

    issued: float
    expires: float
    audiences: tuple[str, ...] = ()
    warn_after: float = 0.0


def read_life(text: str) -> Life | None:
    """Read when a token begins and ends; None for what is no such token."""
    try:
        middle = text.split(".")[1]
        claims = json.loads(urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        audience = claims.get("aud", [])
        audiences = [audience] if isinstance(audience, str) else list(map(str, audience))
        bound = claims.get("kubernetes.io", {})
        warn_after = float(bound.get("warnafter") or 0)
        return Life(float(claims["iat"]), float(claims["exp"]), tuple(audiences), warn_after)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def renew_at(life: Life, jitter: float) -> float:
    """Return when a token is renewed; `jitter` from 0 to 1 spreads those of many pods."""
    end = life.warn_after or life.expires
    due = min(life.issued + _RENEW_SHARE * (end - life.issued), life.issued + RENEW_SECONDS)
    return due - JITTER_SECONDS * jitter


def subject(namespace: str, service_account: str) -> str:
    """Return the name under which a service account is known."""
    return f"system:serviceaccount:{namespace}:{service_account}"


def claims(
    *, issuer: str, audience: str, life: Life, pod: tuple[str, str], account: tuple[str, str], namespace: str
) -> dict[str, object]:
    """Write the claims of a token that is bound to a pod; pod and account are pairs of name and UID."""
    bound: dict[str, object] = {
        "namespace": namespace,
        "pod": {"name": pod[0], "uid": pod[1]},
        "serviceaccount": {"name": account[0], "uid": account[1]},
    }
    return {
        "iss": issuer,
        "sub": subject(namespace, account[0]),
        "aud": [audience or issuer],
        "iat": int(life.issued),
        "nbf": int(life.issued),
        "exp": int(life.expires),
        "kubernetes.io": bound,
    }


def is_for(life: Life, audience: str) -> bool:
    """Tell whether a token is for whom one is wanted; "" is whomever the issuer takes."""
    return not audience or audience in life.audiences
