"""Let in who may. Every request passes here, that for a path which there is not, too.

Source: kubernetes pkg/kubelet/server/server.go `InstallAuthFilter`, whose words the denials are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.kubelet.core.access import Access, User, accesses, forbidden, plain, undecided
from services.kubelet.ports import Reviewer
from services.kubelet.web.authentication import Authenticator
from services.kubelet.web.remembered import Remembered

log = get_logger(__name__)
ALLOWED_SECONDS: Final = 300.0
DENIED_SECONDS: Final = 30.0
Allows = Callable[[User, Access], Awaitable[bool]]


async def allow_always(user: User, access: Access) -> bool:
    """Let in everybody who is somebody."""
    return True


class ReviewedAccess:
    """Asks whether users may, and remembers for a while."""

    def __init__(self, reviewer: Reviewer, clock: Clock) -> None:
        self._reviewer = reviewer
        self._decisions: Remembered[object, bool] = Remembered(
            clock, lambda allowed: ALLOWED_SECONDS if allowed else DENIED_SECONDS
        )

    async def __call__(self, user: User, access: Access) -> bool:
        """Tell whether a user may. Raises `TripodError` when it cannot be told."""
        key = (user.name, user.uid, user.groups, tuple(sorted(user.extra.items())), access)
        return await self._decisions.get(key, lambda: self._reviewer.review_access(user, access))


def guard(authenticator: Authenticator, allows: Allows, node: str) -> Middleware:
    """Make the middleware."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not plain(request.raw_path):
            return _deny(400, "Bad Request")
        try:
            user = await authenticator.user(request)
        except TripodError as error:
            log.warning("Could not authenticate a request", reason=error.reason, error=error.message)
            user = None
        if user is None:
            return _deny(401, "Unauthorized")
        denial = await _denial(user, accesses(request.method, request.path, node))
        return denial if denial is not None else await handler(request)

    async def _denial(user: User, asked: tuple[Access, ...]) -> web.Response | None:
        for access in asked:
            try:
                if await allows(user, access):
                    return None
            except TripodError as error:
                log.warning("Could not authorize a request", reason=error.reason, error=error.message)
                return _deny(500, undecided(user, access))
        log.info("Refused a request", user=user.name, verb=asked[0].verb, subresource=asked[0].subresource)
        return _deny(403, forbidden(user, asked))

    return check


def _deny(status: int, words: str) -> web.Response:
    """Answer, and close: what a refused client sends on is no further request."""
    response = web.Response(status=status, text=words)
    response.force_close()
    return response
