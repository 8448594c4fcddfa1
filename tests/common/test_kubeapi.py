"""What the six verbs do, against a server that behaves and one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.clock import SystemClock
from services.common.errors import Code
from services.common.kubeaccess import Access, User
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Lines, PatchType, Resource, Selection
from tests.fakes.clock import FakeClock
from tests.fakes.kube_server import KubeServer
from tests.waiting import until

pytestmark = pytest.mark.asyncio

PODS = Resource("v1", "pods")
NODES = Resource("v1", "nodes", namespaced=False)
LEASES = Resource("coordination.k8s.io/v1", "leases")


@pytest_asyncio.fixture
async def server() -> AsyncIterator[KubeServer]:
    """Run a server."""
    made = KubeServer()
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def api(server: KubeServer) -> AsyncIterator[KubeApi]:
    """Make a client of it."""
    made = KubeApi(server.access(), SystemClock(), agent="test/1", jitter=lambda: 0.0)
    yield made
    await made.close()


def a_pod(name: str = "web", **spec: object) -> dict[str, object]:
    """Make an object."""
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec}


async def heard(server: KubeServer, count: int) -> None:
    """Wait until the server heard so many requests."""
    await until(lambda: server.count() >= count)


async def test_resources_have_the_paths_of_the_api() -> None:
    """The core group lies under /api, others under /apis."""
    assert PODS.path("a", "b", "status") == "/api/v1/namespaces/a/pods/b/status"
    assert NODES.path("", "n") == "/api/v1/nodes/n"
    assert LEASES.path("a") == "/apis/coordination.k8s.io/v1/namespaces/a/leases"


async def test_an_object_can_be_made_read_changed_and_deleted(server: KubeServer, api: KubeApi) -> None:
    """A status is changed by its own path alone, and a deletion can demand a UID."""
    made = await api.create(PODS, "default", a_pod())
    uid = made["metadata"]["uid"]

    await api.patch(PODS, "default", "web", {"status": {"phase": "Running"}}, subresource="status")
    await api.patch(PODS, "default", "web", {"status": {"phase": "Failed"}}, kind=PatchType.MERGE)

    assert (await api.get(PODS, "default", "web"))["status"]["phase"] == "Running"
    with pytest.raises(KubeApiError) as caught:
        await api.delete(PODS, "default", "web", uid="another")
    assert (caught.value.code, caught.value.reason) == (Code.ABORTED, "CONFLICT")
    await api.delete(PODS, "default", "web", grace_seconds=0, uid=uid)
    with pytest.raises(KubeApiError) as caught:
        await api.get(PODS, "default", "web")
    assert caught.value.absent
    assert caught.value.reason == "NOT_FOUND"
    assert server.get("pods", "default", "web") is None


async def test_a_part_can_be_posted_to(api: KubeApi) -> None:
    """A token is asked for below its service account."""
    answer = await api.create(
        Resource("v1", "serviceaccounts"),
        "default",
        {"spec": {"expirationSeconds": 600}},
        name="default",
        subresource="token",
    )

    assert answer["status"]["token"] == "token-of-default"


async def test_a_list_comes_in_parts(server: KubeServer, api: KubeApi) -> None:
    """Each part is of the same revision."""
    for number in range(5):
        server.put("pods", a_pod(f"p{number}"))

    first = await api.list(Selection(PODS), chunk=3)
    server.put("pods", a_pod("p9"))
    second = await api.list(Selection(PODS), token=first.next_token, chunk=3)

    assert [item["metadata"]["name"] for item in (*first.items, *second.items)] == [f"p{n}" for n in range(5)]
    assert (first.revision, second.next_token) == (second.revision, "")


async def test_what_is_no_list_is_an_error(server: KubeServer, api: KubeApi) -> None:
    """An answer of something else would look like nothing being there."""
    server.put("pods", a_pod())

    class NoList(Resource):
        __slots__ = ()

        def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
            return "/api/v1/namespaces/default/pods/web"

    with pytest.raises(KubeApiError) as caught:
        await api.list(Selection(NoList("v1", "pods")))

    assert caught.value.passing


async def test_a_watch_tells_what_happens_after_a_revision(server: KubeServer, api: KubeApi) -> None:
    """Nothing between the list and the watch is lost."""
    page = await api.list(Selection(PODS))
    server.put("pods", a_pod("early"))

    stream = api.watch(Selection(PODS), revision=page.revision, seconds=60)
    async with aclosing(stream):
        opened = await anext(stream)
        early = await anext(stream)
        server.remove("pods", "default", "early")
        gone = await anext(stream)
        server.bookmark()
        marked = await anext(stream)

    assert [event.type for event in (opened, early, gone, marked)] == [
        "OPENED",
        "ADDED",
        "DELETED",
        "BOOKMARK",
    ]


async def test_a_cut_stream_is_told_from_one_that_ends(server: KubeServer, api: KubeApi) -> None:
    """Only a stream that ends in order may be resumed after its last event."""
    revision = (await api.list(Selection(PODS))).revision

    async def end(how: str) -> None:
        stream = api.watch(Selection(PODS), revision=revision, seconds=60)
        async with aclosing(stream):
            await anext(stream)
            getattr(server, how)()
            async for _ in stream:
                pass

    await end("end_streams")
    with pytest.raises(KubeApiError) as caught:
        await end("cut_streams")
    assert caught.value.reason == "API_STREAM_CUT"


async def test_a_revision_that_is_gone_is_told(server: KubeServer, api: KubeApi) -> None:
    """410 means: list again."""
    server.put("pods", a_pod())
    server.compact()

    with pytest.raises(KubeApiError) as caught:
        await anext(api.watch(Selection(PODS), revision="1", seconds=60))

    assert caught.value.expired


async def test_retry_after_is_honoured(server: KubeServer) -> None:
    """The server says when it has time again."""
    clock = FakeClock()
    api = KubeApi(server.access(), clock, agent="test/1", jitter=lambda: 0.0)
    server.put("pods", a_pod())
    server.refuse(429, times=2, retry_after="7")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(api.get(PODS, "default", "web"))
        while not task.done():
            await asyncio.sleep(0.005)
            if len(server.seen) > clock.monotonic() / 7:
                await clock.advance(7.0)

    assert (clock.monotonic(), len(server.seen)) == (14.0, 3)
    await api.close()


async def test_faults_that_may_pass_are_tried_again_within_the_time(server: KubeServer, api: KubeApi) -> None:
    """A server that restarts costs a moment; one that refuses is told at once."""
    server.put("pods", a_pod())
    server.refuse(503, times=2)

    assert (await api.get(PODS, "default", "web"))["metadata"]["name"] == "web"
    server.seen.clear()
    server.refuse(403)
    with pytest.raises(KubeApiError) as caught:
        await api.get(PODS, "default", "web")
    assert (caught.value.code, len(server.seen)) == (Code.PERMISSION_DENIED, 1)


async def test_a_server_that_is_away_is_told_with_the_time(server: KubeServer, api: KubeApi) -> None:
    """Whoever looks at the node sees since when."""
    server.put("pods", a_pod())
    assert api.fault() is None
    await server.stop()

    with pytest.raises(KubeApiError) as caught:
        await api.get(PODS, "default", "web", seconds=0.3)

    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "API_UNREACHABLE")
    assert "does not answer since" in (api.fault() or "")
    await server.start()
    await api.get(PODS, "default", "web")
    assert api.fault() is None


async def test_requests_wait_for_their_turn(server: KubeServer) -> None:
    """After a burst of 100, 50 a second."""
    clock = FakeClock()
    api = KubeApi(server.access(), clock, agent="test/1")
    server.put("nodes", {"metadata": {"name": "n"}})

    async with asyncio.TaskGroup() as group:
        for _ in range(120):
            group.create_task(api.get(NODES, "", "n"))
        await heard(server, 100)
        await clock.settle()
        early = server.count()
        await clock.advance(0.21)
        await heard(server, 110)
        late = server.count()
        await clock.advance(1.0)

    assert (early, late) == (100, 110)
    await api.close()


async def test_a_token_that_was_replaced_is_read_again(server: KubeServer, tmp_path: Path) -> None:
    """A bound token ends; its file is rewritten before."""
    file = tmp_path / "token"
    file.write_text("one\n")
    api = KubeApi(Access(server.url, User(token_file=file)), SystemClock(), agent="test/1")
    server.put("nodes", {"metadata": {"name": "n"}})

    await api.get(NODES, "", "n")
    file.write_text("two-is-longer\n")
    await api.get(NODES, "", "n")

    assert [seen.headers["Authorization"] for seen in server.seen] == ["Bearer one", "Bearer two-is-longer"]
    await api.close()


@pytest.mark.parametrize("cut", range(1, 12))
async def test_lines_may_be_cut_anywhere(cut: int) -> None:
    """A stream's parts have nothing to do with its lines."""
    data = b"first\n\nsecond"
    lines = Lines(100)

    found = [*lines.feed(data[:cut]), *lines.feed(data[cut:]), *lines.feed(b"\n")]

    assert found == [b"first", b"second"]


async def test_a_line_without_end_is_refused() -> None:
    """A peer cannot fill our memory."""
    with pytest.raises(ValueError):
        Lines(10).feed(b"x" * 11)


async def test_the_password_of_a_proxy_is_told_to_nobody() -> None:
    """What is said of a server goes to logs and conditions."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    access = Access("https://api.invalid", proxy=f"http://bob:hunter2@127.0.0.1:{port}", verify=False)
    api = KubeApi(access, SystemClock(), agent="test/1")
    try:
        with pytest.raises(KubeApiError) as caught:
            await api.get(PODS, "default", "web", seconds=0.1)
        told = f"{caught.value.message} {api.fault()}"
    finally:
        await api.close()
        proxy.close()

    assert "407 Proxy Authentication Required" in told
    assert "hunter2" not in told
