"""Who is let in, over real TLS."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from services.kubelet.web.remembered import Remembered
from tests.fakes.clock import FakeClock
from tests.kubelet.web.port import ADMIN, METRICS, NODE, TOKEN, secure
from tests.lab.tls import Authority, any_server
from tests.waiting import until

pytestmark = pytest.mark.asyncio
BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def test_nobody_is_anonymous(tmp_path: Path) -> None:
    """Not even for health, and not for paths that there are not."""
    async with secure(tmp_path) as port:
        for path in ("/healthz", "/pods", "/nothing", "/exec/default/web/app"):
            assert await port.get(path) == (401, "Unauthorized")
        assert await port.get("/pods", Authorization="Bearer bad") == (401, "Unauthorized")
        assert await port.get("/pods", Authorization="Basic eDp5") == (401, "Unauthorized")


async def test_a_certificate_says_user_and_groups(tmp_path: Path) -> None:
    """Common name and organizations; the review is told both."""
    async with secure(tmp_path) as port:
        answer = await port.get("/healthz", port.admin)
        user, access = port.reviewer.asked[-1]

    assert answer == (200, "ok")
    assert (user.name, user.groups) == (ADMIN, ("system:masters",))
    assert (access.verb, access.subresource, access.node) == ("get", "healthz", NODE)


async def test_who_may_not_is_told_in_the_originals_words(tmp_path: Path) -> None:
    """With every subresource that was asked for."""
    async with secure(tmp_path) as port:
        someone = port.authority.issue("someone", "a-group").client()
        answer = await port.get("/pods", someone)

    words = "Forbidden (user=someone, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
    assert answer == (403, words)


@pytest.mark.parametrize("path", ["/exec/default/web/app?command=x&output=1", "/portForward/default/web"])
async def test_who_may_get_the_proxy_may_not_run_commands(tmp_path: Path, path: str) -> None:
    """A WebSocket begins with a GET: `get` of `nodes/proxy` must not be enough."""
    async with secure(tmp_path) as port:
        port.reviewer.allowed.add(("reader", "get", "proxy"))
        reader = port.authority.issue("reader").client()

        assert (await port.get("/containerLogs/default/web/none", reader))[0] == 404
        status, words = await port.get(path, reader, Upgrade="websocket", Connection="Upgrade")

    assert status == 403
    assert "verb=create, resource=nodes, subresource(s)=[proxy]" in words


async def test_a_token_is_reviewed_once_in_two_minutes(tmp_path: Path) -> None:
    """One that is nobody's once in ten seconds; decisions for five minutes or half of one."""
    clock = FakeClock()
    async with secure(tmp_path, clock=clock) as port:
        asked = port.reviewer.asked
        for _ in range(3):
            assert (await port.get("/metrics", **BEARER))[0] == 200
        assert [asked.count("token"), len(asked)] == [1, 2]
        await clock.advance(121)
        assert (await port.get("/metrics", **BEARER))[0] == 200
        assert [asked.count("token"), len(asked)] == [2, 3]
        await clock.advance(180)
        assert (await port.get("/metrics", **BEARER))[0] == 200
        assert [asked.count("token"), len(asked)] == [3, 5]
        asked.clear()
        for _ in range(3):
            assert (await port.get("/metrics", Authorization="Bearer bad"))[0] == 401
        assert asked == ["token"]
        await clock.advance(11)
        assert (await port.get("/metrics", Authorization="Bearer bad"))[0] == 401
        assert asked == ["token", "token"]
        for _ in range(2):
            assert (await port.get("/pods", **BEARER))[0] == 403
        assert len(asked) == 4
        await clock.advance(31)
        assert (await port.get("/pods", **BEARER))[0] == 403
        assert len(asked) == 6


async def test_a_long_token_is_reviewed_and_a_longer_one_refused(tmp_path: Path) -> None:
    """Tokens hold all groups of their owner."""
    async with secure(tmp_path) as port:
        answers = [
            (await port.get("/metrics", Authorization=f"Bearer {'x' * count}"))[0]
            for count in (60_000, 70_000, 200_000)
        ]

    assert answers == [401, 401, 400]
    assert port.reviewer.asked == ["token"]


async def test_many_at_once_ask_once(tmp_path: Path) -> None:
    """A scrape by many clients is one review."""
    async with secure(tmp_path) as port:
        answers = await asyncio.gather(*(port.get("/metrics", **BEARER) for _ in range(20)))

        assert {status for status, _ in answers} == {200}
        assert port.reviewer.asked.count("token") == 1


async def test_who_waited_for_an_answer_that_failed_does_not_ask_again() -> None:
    """While the API server is away, each of many would wait for its own failure after all others'."""
    remembered: Remembered[str, bool] = Remembered(FakeClock(), lambda _: 1.0)
    may_fail = asyncio.Event()
    asked = 0

    async def ask() -> bool:
        nonlocal asked
        asked += 1
        await may_fail.wait()
        raise ConnectionError("away")

    waiting = [asyncio.ensure_future(remembered.get("token", ask)) for _ in range(20)]  # noqa: TID251  # gathered
    await until(lambda: asked == 1)
    may_fail.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    later = await asyncio.gather(remembered.get("token", ask), return_exceptions=True)

    assert {str(answer) for answer in [*answers, *later]} == {"away"}
    assert asked == 2
    assert len(remembered) == 0


async def test_a_websocket_may_carry_its_token_as_a_subprotocol(tmp_path: Path) -> None:
    """Browsers can set no header."""
    coded = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    offer = {"Sec-WebSocket-Protocol": f"v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.{coded}"}
    async with secure(tmp_path) as port:
        with_upgrade = await port.get("/metrics", Upgrade="websocket", Connection="Upgrade", **offer)
        without = await port.get("/metrics", **offer)

    assert with_upgrade[0] == 200
    assert without[0] == 401


async def test_while_the_api_server_is_away_nobody_new_is_let_in(tmp_path: Path) -> None:
    """A certificate is known, but what it may do is not; a token is not known."""
    async with secure(tmp_path) as port:
        assert (await port.get("/metrics", **BEARER))[0] == 200
        port.reviewer.down = True
        known = await port.get("/metrics", **BEARER)
        certificate = await port.get("/pods", port.admin)
        token = await port.get("/pods", Authorization="Bearer another")

    assert known[0] == 200
    assert certificate == (
        500,
        f"Authorization error (user={ADMIN}, verb=get, resource=nodes, subresource=pods)",
    )
    assert token == (401, "Unauthorized")


async def _refused(port_get: object) -> bool:
    try:
        status, _ = await port_get  # type: ignore[misc]  # a coroutine
    except (aiohttp.ClientError, ssl.SSLError, OSError):
        return True
    return bool(status == 401)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda authority, _: authority.issue(ADMIN, life=timedelta(minutes=-30)), id="over"),
        pytest.param(lambda authority, _: authority.issue(ADMIN, server=True), id="of-a-server"),
        pytest.param(lambda _, other: other.issue(ADMIN), id="of-another-authority"),
        pytest.param(lambda authority, _: authority.issue(""), id="of-nobody"),
    ],
)
async def test_a_certificate_that_is_no_good_lets_nobody_in(
    tmp_path: Path, made: Callable[[Authority, Authority], object]
) -> None:
    """The handshake fails, or the answer is 401."""
    async with secure(tmp_path) as port:
        other = await asyncio.to_thread(Authority, tmp_path, "others")
        client = made(port.authority, other).client()  # type: ignore[attr-defined]  # a pair

        assert await _refused(port.get("/healthz", client))


async def test_the_authorities_are_read_again_when_the_file_changes(tmp_path: Path) -> None:
    """Who was let in before is not any more, on a connection that is open, too."""
    clock = FakeClock()
    async with secure(tmp_path, clock=clock) as port, port.session() as session:
        other = await asyncio.to_thread(Authority, tmp_path, "others")
        newcomer = other.issue(ADMIN).client()
        assert await _refused(port.get("/healthz", newcomer))
        async with session.get(port.url("/healthz")) as answer:
            assert answer.status == 200
        # Now the file has the other authority alone.
        port.authority.path.write_bytes(other.pem)
        await clock.advance(2)

        assert await port.get("/healthz", newcomer) == (200, "ok")
        async with session.get(port.url("/healthz")) as answer:
            assert answer.status == 401
        assert await _refused(port.get("/healthz", port.admin))


async def test_a_file_that_became_rubbish_changes_nothing(tmp_path: Path) -> None:
    """Nor does one that is gone."""
    clock = FakeClock()
    async with secure(tmp_path, clock=clock) as port:
        content = port.authority.path.read_bytes()
        port.authority.path.write_text("rubbish")
        await clock.advance(2)
        assert await port.get("/healthz", port.admin) == (200, "ok")
        port.authority.path.unlink()
        await clock.advance(2)
        assert await port.get("/healthz", port.admin) == (200, "ok")
        port.authority.path.write_bytes(content)


@pytest.mark.parametrize(
    "target", ["/metrics/../exec/default/web/app", "/%6detrics", "//metrics", "/metrics%2f..%2fpods"]
)
async def test_a_crooked_path_is_refused(tmp_path: Path, target: str) -> None:
    """Whoever may read metrics reaches nothing else by it."""
    async with secure(tmp_path) as port:
        loop = asyncio.get_running_loop()

        def ask() -> bytes:
            with any_server().wrap_socket(socket.create_connection(("127.0.0.1", port.number))) as plain:
                plain.sendall(
                    f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
                )
                return plain.recv(4096)

        answer = await loop.run_in_executor(None, ask)

    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_client_that_vanished_is_noticed_soon(tmp_path: Path) -> None:
    """The kernel asks it every 15 s: a command that is silent would never learn of it."""
    async with secure(tmp_path) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port.number, ssl=any_server())
        own = writer.get_extra_info("sockname")[1]
        kind, hundredths = timer(port.number, own)
        writer.close()
        await writer.wait_closed()

    # 2 is the timer that keeps a connection alive.
    assert kind == 2
    assert hundredths <= 1500


def timer(port: int, peer: int) -> tuple[int, int]:
    """Return which timer a connection on loopback has, and when it ends (proc(5), `/proc/net/tcp`)."""
    pair = f"0100007F:{port:04X} 0100007F:{peer:04X}"
    (line,) = [line for line in Path("/proc/net/tcp").read_text().splitlines() if pair in line]
    kind, _, hundredths = line.split()[5].partition(":")
    return int(kind, 16), int(hundredths, 16)


async def test_old_tls_is_not_spoken(tmp_path: Path) -> None:
    """1.2 and later are."""
    async with secure(tmp_path) as port:
        new = any_server()
        new.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await port.get("/metrics", new, **BEARER))[0] == 200
        old = any_server()
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1

        assert await _refused(port.get("/metrics", old, **BEARER))


async def test_tokens_reach_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the answer is."""
    async with secure(tmp_path) as port:
        await port.get("/metrics", **BEARER)
        await port.get("/pods", **BEARER)
        await port.get("/pods", Authorization="Bearer secret-of-nobody")
        port.reviewer.down = True
        await port.get("/pods", Authorization="Bearer secret-of-somebody")
    told = "".join(capfd.readouterr())

    assert METRICS.name in told
    assert "secret-of" not in told
    assert TOKEN not in told
