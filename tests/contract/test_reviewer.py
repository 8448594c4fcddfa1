"""What the HTTPS port relies on in a reviewer: the same suite on values and on the one that asks a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from services.common.clock import SystemClock
from services.common.errors import TripodError
from services.common.kubeaccess import Access as ServerAccess
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.kubelet.adapters.kube_reviews import KubeReviewer
from services.kubelet.core.access import Access, User
from services.kubelet.core.kube_resources import NODES
from services.kubelet.ports import Reviewer
from tests.fakes.clock import FakeClock
from tests.fakes.reviewer import FakeReviewer

pytestmark = pytest.mark.asyncio
OWNER = User("system:serviceaccount:ns:app", ("system:serviceaccounts", "g"), "uid-1", {"x/pod": ("a", "b")})
MAY = Access("get", "metrics", "n1")


def reviews(known: FakeReviewer) -> web.Application:
    """Answer reviews as a kube-apiserver does, from what a fake knows."""

    async def tokens(request: web.Request) -> web.Response:
        body = await request.json()
        assert (body["kind"], list(body["spec"])) == ("TokenReview", ["token"])
        user = known.tokens.get(body["spec"]["token"])
        status: dict[str, Any] = {"user": {}, "error": "invalid bearer token"}
        if user is not None:
            extra = {key: list(values) for key, values in user.extra.items()}
            told = {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": extra}
            status = {"authenticated": True, "user": told}
        return web.json_response({**body, "status": status}, status=201)

    async def accesses(request: web.Request) -> web.Response:
        body = await request.json()
        spec = body["spec"]
        wanted = spec["resourceAttributes"]
        assert (wanted["resource"], wanted["version"], wanted["name"]) == ("nodes", "v1", "n1")
        assert spec["extra"] == {"x/pod": ["a", "b"]}
        allowed = (spec["user"], wanted["verb"], wanted["subresource"]) in known.allowed
        return web.json_response({**body, "status": {"allowed": allowed}}, status=201)

    app = web.Application()
    app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", tokens)
    app.router.add_post("/apis/authorization.k8s.io/v1/subjectaccessreviews", accesses)
    return app


@pytest_asyncio.fixture(params=["fake", "api"])
async def reviewer(request: pytest.FixtureRequest) -> AsyncIterator[Reviewer]:
    """Give each reviewer in turn; both know one token and one thing that its owner may do."""
    fake = FakeReviewer({"good": OWNER}, {(OWNER.name, "get", "metrics")})
    if request.param == "fake":
        yield fake
        return
    runner = web.AppRunner(reviews(fake))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = KubeApi(ServerAccess(f"http://127.0.0.1:{runner.addresses[0][1]}"), SystemClock(), agent="test/1")
    try:
        yield KubeReviewer(api, SystemClock())
    finally:
        await api.close()
        await runner.cleanup()


async def test_a_tokens_owner_is_told_in_full(reviewer: Reviewer) -> None:
    """With what else is known of the owner, for it goes into the question what the owner may do."""
    assert await reviewer.review_token("good") == OWNER


async def test_a_token_of_nobody_is_no_error(reviewer: Reviewer) -> None:
    """And tells of nobody."""
    assert await reviewer.review_token("bad") is None


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        (MAY, True),
        (Access("create", "metrics", "n1"), False),
        (Access("get", "proxy", "n1"), False),
    ],
)
async def test_who_may_is_told_by_verb_and_subresource(
    reviewer: Reviewer, access: Access, expected: bool
) -> None:
    """Of this node."""
    assert await reviewer.review_access(OWNER, access) is expected


async def test_a_server_that_is_away_tells_nothing() -> None:
    """An error, without the token."""
    api = KubeApi(ServerAccess("http://127.0.0.1:1"), SystemClock(), agent="test/1")
    try:
        with pytest.raises(TripodError) as caught:
            await KubeReviewer(api, SystemClock()).review_token("secret-token")
    finally:
        await api.close()

    assert "secret-token" not in f"{caught.value.message} {caught.value.metadata}"


async def test_tokens_that_anybody_shows_leave_room_for_the_nodes_own_calls() -> None:
    """At a moment at which the clock stands still: hundreds of reviews wait, and the node is asked for."""
    runner, clock = web.AppRunner(reviews(FakeReviewer({}, set()))), FakeClock()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = KubeApi(ServerAccess(f"http://127.0.0.1:{runner.addresses[0][1]}"), clock, agent="test/1")
    reviewer = KubeReviewer(api, clock)
    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            shown = [group.create_task(reviewer.review_token(f"bad-{number}")) for number in range(300)]
            await shown[0]
            with pytest.raises(KubeApiError) as caught:
                await api.get(NODES, "", "n1")
            for one in shown:
                one.cancel()
    finally:
        await api.close()
        await runner.cleanup()

    assert caught.value.status == 404
