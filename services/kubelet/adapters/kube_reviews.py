"""Ask a kube-apiserver who a token's owner is, and what a user may. Implements `Reviewer`.

Whoever reaches the port can show any number of tokens. Their reviews take a part of the rate at which this
node may ask, so that its lease and its statuses go on; what a user may is asked of users that are known.

Source: `authentication.k8s.io/v1` TokenReview, `authorization.k8s.io/v1` SubjectAccessReview.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.common.clock import Clock
from services.common.errors import Code
from services.common.kubeapi import KubeApi
from services.common.kuberequest import Resource
from services.common.tokenbucket import TokenBucket
from services.kubelet.core.access import Access, User
from services.kubelet.errors import KubeletError

TOKEN_REVIEWS: Final = Resource("authentication.k8s.io/v1", "tokenreviews", namespaced=False)
ACCESS_REVIEWS: Final = Resource("authorization.k8s.io/v1", "subjectaccessreviews", namespaced=False)
_TOKENS_PER_SECOND: Final = 20.0
_TOKENS_AT_ONCE: Final = 40


class KubeReviewer:
    """Asks one server. The client is closed by its opener."""

    def __init__(self, api: KubeApi, clock: Clock) -> None:
        self._api = api
        self._tokens = TokenBucket(clock, per_second=_TOKENS_PER_SECOND, burst=_TOKENS_AT_ONCE)

    async def review_token(self, token: str) -> User | None:
        """Return whose token this is; None when it is nobody's. No error has the token in it."""
        await self._tokens.take()
        body = {"apiVersion": TOKEN_REVIEWS.version, "kind": "TokenReview", "spec": {"token": token}}
        status = _status(await self._api.create(TOKEN_REVIEWS, "", body))
        if status.get("authenticated") is not True:
            return None
        return _user(status.get("user") or {})

    async def review_access(self, user: User, access: Access) -> bool:
        """Tell whether a user may."""
        spec: dict[str, Any] = {
            "user": user.name,
            "groups": list(user.groups),
            "uid": user.uid,
            "extra": {key: list(values) for key, values in user.extra.items()},
            "resourceAttributes": {
                "verb": access.verb,
                "version": "v1",
                "resource": "nodes",
                "subresource": access.subresource,
                "name": access.node,
            },
        }
        body = {"apiVersion": ACCESS_REVIEWS.version, "kind": "SubjectAccessReview", "spec": spec}
        status = _status(await self._api.create(ACCESS_REVIEWS, "", body))
        return status.get("allowed") is True and status.get("denied") is not True


def _status(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    status = answer.get("status")
    if not isinstance(status, dict):
        raise KubeletError(
            "The API server's review has no status", code=Code.UNAVAILABLE, reason="REVIEW_UNREADABLE"
        )
    return status


def _user(found: Mapping[str, Any]) -> User | None:
    name = found.get("username")
    if not isinstance(name, str) or not name:
        return None
    extra = {str(key): tuple(map(str, values or ())) for key, values in (found.get("extra") or {}).items()}
    return User(name, tuple(map(str, found.get("groups") or ())), str(found.get("uid") or ""), extra)
