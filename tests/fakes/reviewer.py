"""A reviewer of values. Obeys `Reviewer`; passes the same contract suite as the one that asks a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.errors import Code, TripodError
from services.kubelet.core.access import Access, User


class FakeReviewer:
    """Knows tokens, and who may do what: pairs of a user's name and a subresource with its verb."""

    def __init__(self, tokens: Mapping[str, User], allowed: set[tuple[str, str, str]]) -> None:
        self.tokens = dict(tokens)
        self.allowed = allowed
        self.down = False
        self.asked: list[Any] = []

    def _called(self, what: Any) -> None:
        self.asked.append(what)
        if self.down:
            raise TripodError("the API server does not answer", code=Code.UNAVAILABLE, reason="API_DOWN")

    async def review_token(self, token: str) -> User | None:
        """Return whose token this is."""
        self._called("token")
        return self.tokens.get(token)

    async def review_access(self, user: User, access: Access) -> bool:
        """Tell whether a user may."""
        self._called((user, access))
        return (user.name, access.verb, access.subresource) in self.allowed
