"""A proxy before an API server that does harm: to requests, and to each event of a watch.

    async with api_faults(plane, files.kubeconfig) as faults:
        ... a node whose kubeconfig leads to faults.url ...
        faults.cut_watches_seconds = 1.0
        faults.refuse(too_many(retry_after=1), times=20)
        await faults.away()

It ends TLS with a certificate of the cluster, and asks the API server as one client, whose kubeconfig it is
given; a bearer token passes through. Watches pass line by line when they are JSON, so that events can be held
back and sent again; requests to upgrade a connection are not for it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from tests.lab.kubernetes import ControlPlane

EVER = 1 << 62
# How closely the next event must follow to change places.
_CLOSELY_SECONDS = 0.25
# How often a stream looks whether it is to be cut.
_LOOK_SECONDS = 0.1
_Lines = asyncio.Queue[bytes | None]
# Headers that belong to one connection, not to the message. Bodies come decompressed, in chunks of our own.
_HOP = frozenset(
    {"connection", "content-encoding", "content-length", "host", "keep-alive", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "accept-encoding"}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came: `moment` is of the event loop's clock, `watch` tells whether it asked to watch."""

    moment: float
    method: str
    path: str
    query: str
    watch: bool
    kind: str
    agent: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer instead of the API server's."""

    status: int
    reason: str
    message: str
    retry_after_seconds: int = 0

    def answer(self) -> web.Response:
        """Write it as the API server does."""
        headers = {"Retry-After": str(self.retry_after_seconds)} if self.retry_after_seconds else {}
        return web.json_response(self.body(), status=self.status, headers=headers)

    def body(self) -> dict[str, Any]:
        """Return the `Status` object."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.status,
            "details": {"retryAfterSeconds": self.retry_after_seconds} if self.retry_after_seconds else {},
        }


def too_many(retry_after_seconds: int = 1) -> Refusal:
    """429, as priority and fairness answers when its queues are full."""
    return Refusal(429, "TooManyRequests", "too many requests, please try again later", retry_after_seconds)


def expired() -> Refusal:
    """410: the resource version that was asked for has been compacted."""
    return Refusal(410, "Expired", "too old resource version: 1 (2)")


def broken() -> Refusal:
    """500, as when etcd has no leader."""
    return Refusal(500, "InternalError", "etcdserver: leader changed")


Accepts = Callable[[Asked], bool]


def everything(_: Asked) -> bool:
    """Accept every request."""
    return True


def watches(asked: Asked) -> bool:
    """Accept requests to watch."""
    return asked.watch


def resumed(asked: Asked) -> bool:
    """Accept requests to go on with a watch from a resource version."""
    return asked.watch and "resourceVersion=" in asked.query and "resourceVersion=0" not in asked.query


@dataclass(slots=True)
class _Rule:
    """What happens to the next `left` requests that `when` accepts."""

    when: Accepts
    left: int
    refusal: Refusal | None = None
    # Do the work, and lose the answer.
    drop: bool = False
    # Begin a stream with an event of this error, as a watch that cannot go on does.
    event: bool = False


@dataclass
class ApiFaults:
    """Settings that may change at any time, and what was asked. Nothing is wrong at first."""

    target: str
    inward: ssl.SSLContext
    http: aiohttp.ClientSession
    host: str
    # Wait before each request; before each event of a watch.
    delay_seconds: float = 0.0
    event_delay_seconds: float = 0.0
    # End each watch after so long: by a reset, or as a server that has had enough.
    cut_watches_seconds: float = 0.0
    cut_cleanly: bool = False
    # Send every event twice; send each pair of neighbours that follow closely in the wrong order.
    duplicate: bool = False
    reorder: bool = False
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    cut_count: int = 0
    refused_count: int = 0
    reordered_count: int = 0
    _rules: list[_Rule] = field(default_factory=list)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"https://{self.host}:{self.port}"

    def refuse(self, refusal: Refusal, *, times: int = EVER, when: Accepts = everything) -> None:
        """Answer the next requests with a refusal; the API server does not see them."""
        self._rules.append(_Rule(when, times, refusal))

    def fail_watches(self, refusal: Refusal, *, times: int = EVER, when: Accepts = resumed) -> None:
        """Answer the next watches with 200 and an event of type ERROR."""
        self._rules.append(_Rule(when, times, refusal, event=True))

    def drop_answers(self, *, times: int = EVER, when: Accepts = everything) -> None:
        """Let the API server do what the next requests ask, and close the connection instead of answering."""
        self._rules.append(_Rule(when, times, drop=True))

    def heal(self) -> None:
        """Do no more harm."""
        self._rules.clear()
        self.delay_seconds = self.event_delay_seconds = self.cut_watches_seconds = 0.0
        self.duplicate = self.reorder = False

    def count(self, when: Accepts = everything) -> int:
        """Count the requests so far that `when` accepts."""
        return sum(when(asked) for asked in self.asked)

    async def away(self) -> None:
        """Be gone: connections are reset, new ones are refused."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            for connection in list(runner.server.connections if runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()

    async def back(self) -> None:
        """Be there again, at the same address."""
        if self._runner is not None:
            return
        application = web.Application(client_max_size=1 << 26)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            # A watch that its client has left ends here, too.
            handler_cancellation=True,
            shutdown_timeout=0,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=self.inward, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked = _asked(request)
        self.asked.append(asked)
        body = await request.read()
        await asyncio.sleep(self.delay_seconds)
        rule = self._rule(asked)
        if rule is not None and rule.refusal is not None:
            self.refused_count += 1
            if rule.event:
                return await _error_event(request, rule.refusal)
            return rule.refusal.answer()
        return await self._pass(request, body, asked, drop=rule is not None)

    def _rule(self, asked: Asked) -> _Rule | None:
        for rule in self._rules:
            if rule.left > 0 and rule.when(asked):
                rule.left -= 1
                return rule
        return None

    async def _pass(
        self, request: web.Request, body: bytes, asked: Asked, *, drop: bool
    ) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = URL(self.target + request.raw_path, encoded=True)
        try:
            async with self.http.request(
                request.method, url, data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                if drop:
                    await answer.read()
                    return _reset(request)
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                await self._stream(request, asked, answer, response)
        except (aiohttp.ClientError, ConnectionError):
            return _reset(request)
        return response

    async def _stream(
        self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self._pump(asked, answer, response))
            while not pump.done():
                await asyncio.wait({pump}, timeout=_LOOK_SECONDS)
                if not pump.done() and self._is_due(asked):
                    self.cut_count += 1
                    pump.cancel()
                    break
        if pump.cancelled() and not self.cut_cleanly:
            _reset(request)
        else:
            with suppress(ConnectionError):
                await response.write_eof()

    def _is_due(self, asked: Asked) -> bool:
        """Tell whether a watch has lasted as long as it may; one that is older than the setting has."""
        age = asyncio.get_running_loop().time() - asked.moment
        return bool(asked.watch and self.cut_watches_seconds and age > self.cut_watches_seconds)

    async def _pump(self, asked: Asked, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        # Whichever side has gone, the other one is told by the end of the stream.
        with suppress(aiohttp.ClientError, ConnectionError):
            if asked.watch and answer.status == 200 and "json" in answer.content_type:
                await self._events(answer, response)
            else:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)

    async def _events(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        lines: _Lines = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(_read_lines(answer.content, lines))
            try:
                await self._send(lines, response)
            finally:
                reader.cancel()

    async def _send(self, lines: _Lines, response: web.StreamResponse) -> None:
        while (line := await lines.get()) is not None:
            await asyncio.sleep(self.event_delay_seconds)
            for each in await self._ordered(line, lines):
                for _ in range(2 if self.duplicate else 1):
                    with suppress(ConnectionError):
                        await response.write(each)

    async def _ordered(self, line: bytes, lines: _Lines) -> list[bytes]:
        """Return what goes out now: with `reorder`, an event behind the one that closely follows it.

        A bookmark says what came before it, so none changes places with an event.
        """
        if not self.reorder or _is_bookmark(line):
            return [line]
        try:
            async with asyncio.timeout(_CLOSELY_SECONDS):
                following = await lines.get()
        except TimeoutError:
            return [line]
        if following is None:
            lines.put_nowait(None)
            return [line]
        if _is_bookmark(following):
            return [line, following]
        self.reordered_count += 1
        return [following, line]


async def _read_lines(content: aiohttp.StreamReader, lines: _Lines) -> None:
    """Put each line, then None: at the end, and when the connection breaks."""
    rest = b""
    with suppress(aiohttp.ClientError, ConnectionError):
        async for chunk in content.iter_any():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                lines.put_nowait(line + b"\n")
    lines.put_nowait(None)


def _is_bookmark(line: bytes) -> bool:
    return bool(json.loads(line).get("type") == "BOOKMARK")


def _asked(request: web.Request) -> Asked:
    return Asked(
        moment=asyncio.get_running_loop().time(),
        method=request.method,
        path=request.path,
        query=request.query_string,
        watch=request.query.get("watch", "") in ("1", "true"),
        kind=request.headers.get("Content-Type", ""),
        agent=request.headers.get("User-Agent", ""),
    )


async def _error_event(request: web.Request, refusal: Refusal) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    event = {"type": "ERROR", "object": refusal.body()}
    await response.write(json.dumps(event).encode() + b"\n")
    await response.write_eof()
    return response


def _reset(request: web.Request) -> web.Response:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _identity(kubeconfig: Path, folder: Path) -> ssl.SSLContext:
    """Trust and present what a kubeconfig of ours holds."""
    config = json.loads(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]).decode())
    pair = folder / "client.pem"
    pair.touch(0o600)
    pair.write_bytes(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
    context.load_cert_chain(pair)
    return context


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)


@asynccontextmanager
async def api_faults(
    plane: ControlPlane, kubeconfig: Path, *, host: str = "127.0.0.1"
) -> AsyncIterator[ApiFaults]:
    """Run a proxy for a block, on an address of this host; it asks as the kubeconfig's user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate, key = plane.layout.authority().server("faults", (host,)).write(folder, "server")
        inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inward.load_cert_chain(certificate, key)
        connector = aiohttp.TCPConnector(ssl=_identity(kubeconfig, folder), limit=0)
        # A watch lasts as long as the API server lets it.
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None, connect=10)
        ) as http:
            made = ApiFaults(plane.url, inward, http, host)
            await made.back()
            try:
                yield made
            finally:
                await made.away()
