"""`/exec`, `/attach`, `/portForward` and the older `/run`: the runtime's streams for whoever may.

The kubelet asks the runtime for a URL that works once and joins the client's connection with it. Where the
runtime does not speak the client's WebSocket protocol, which shows in its refusal, it is asked again in SPDY
and the messages are translated.

Source: kubernetes pkg/kubelet/server/server.go `getExec`, `getAttach`, `getPortForward`, `getRun`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.common.logs import get_logger
from services.common.remotecommand import negotiation, websocket
from services.common.spdy.upgrade import take_over
from services.kubelet.adapters.exec_spdy import PROTOCOL, SpdyExec
from services.kubelet.adapters.upgraded import NOT_SPOKEN, SWITCHING, Answer, Headers, unreachable, upgrade
from services.kubelet.core import stream_options
from services.kubelet.core.model import Pod
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.stream_options import StreamOptionsError, Streams
from services.kubelet.ports import PodSource, Runtime
from services.kubelet.web.authentication import TOKEN_PROTOCOL
from services.kubelet.web.relay import join
from services.kubelet.web.translate import serve_command, serve_tunnel

log = get_logger(__name__)
_NEEDED: Final = ("Sec-WebSocket-Key", "Sec-WebSocket-Version", negotiation.VERSION_HEADER)
_ANSWERED: Final = (
    "Upgrade",
    negotiation.VERSION_HEADER,
    "Sec-WebSocket-Accept",
    "Sec-WebSocket-Protocol",
)
_OFFER: Final = "Sec-WebSocket-Protocol"
_RUN_SECONDS: Final = 120
Urls = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a client is to be joined with: where to get URLs, and for a command which streams it has."""

    urls: Urls
    streams: Streams | None = None


class StreamRoutes:
    """Serves the routes. `session_count` says how many clients are joined."""

    def __init__(self, source: PodSource, runtime: Runtime, clock: Clock) -> None:
        self._source = source
        self._runtime = runtime
        self._clock = clock
        self.session_count = 0

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add all routes."""
        for verb, handler in (("exec", self._exec), ("attach", self._attach)):
            for path in ("{namespace}/{pod}/{container}", "{namespace}/{pod}/{uid}/{container}"):
                router.add_get(f"/{verb}/{path}", handler, allow_head=False)
                router.add_post(f"/{verb}/{path}", handler)
        for path in ("{namespace}/{pod}", "{namespace}/{pod}/{uid}"):
            router.add_get(f"/portForward/{path}", self._forward, allow_head=False)
            router.add_post(f"/portForward/{path}", self._forward)
        for path in ("{namespace}/{pod}/{container}", "{namespace}/{pod}/{uid}/{container}"):
            router.add_post(f"/run/{path}", self._run)

    async def _exec(self, http: web.Request) -> web.StreamResponse:
        query = query_of(http)
        command = list(query.get("command", ()))
        try:
            streams = stream_options.streams(query)
        except StreamOptionsError as error:
            return refuse(400, str(error))
        if not command:
            return refuse(400, "you must specify a command")
        try:
            container = await self._running(http)

            async def urls() -> str:
                return await self._runtime.exec_url(container.id, command, streams)

            return await self._stream(http, _Wanted(urls, streams))
        except TripodError as error:
            return refuse_error(error)

    async def _attach(self, http: web.Request) -> web.StreamResponse:
        try:
            streams = stream_options.streams(query_of(http))
        except StreamOptionsError as error:
            return refuse(400, str(error))
        try:
            container = await self._running(http)

            async def urls() -> str:
                return await self._runtime.attach_url(container.id, streams)

            return await self._stream(http, _Wanted(urls, streams))
        except TripodError as error:
            return refuse_error(error)

    async def _forward(self, http: web.Request) -> web.StreamResponse:
        on_channels = _is_websocket(http) and negotiation.TUNNEL not in _offered(http)
        try:
            ports = stream_options.ports(query_of(http)) if on_channels else ()
        except StreamOptionsError as error:
            return refuse(400, str(error))
        try:
            pod = self._pod(http)
            sandbox = (await self._observe(pod)).sandbox()
            if sandbox is None or not sandbox.ready:
                raise _not_found(f'pod not found ("{pod.name}_{pod.namespace}")')

            async def urls() -> str:
                return await self._runtime.port_forward_url(sandbox.id, ports)

            return await self._stream(http, _Wanted(urls))
        except TripodError as error:
            return refuse_error(error)

    async def _run(self, http: web.Request) -> web.StreamResponse:
        try:
            container = await self._running(http)
            command = http.query.get("cmd", "").split(" ")
            code, output = await self._runtime.exec_sync(container.id, command, _RUN_SECONDS)
        except TripodError as error:
            return refuse(404 if error.code is Code.NOT_FOUND else 500, error.message)
        if code:
            said = output.decode(errors="replace")
            return refuse(500, f"command '{' '.join(command)}' exited with {code}: {said}")
        return web.Response(body=output, content_type="text/plain")

    def _pod(self, http: web.Request) -> Pod:
        """Find the pod of a request. Raises `TripodError` NOT_FOUND."""
        wanted = (http.match_info["namespace"], http.match_info["pod"])
        found = next((p for p in self._source.pods() if (p.namespace, p.name) == wanted), None)
        if found is None:
            raise _not_found("pod does not exist")
        if http.match_info.get("uid", found.uid) != found.uid:
            raise _not_found("pod not found")
        return found

    async def _observe(self, pod: Pod) -> ObservedPod:
        with telemetry.unrecorded():
            return await self._runtime.observe(pod.uid)

    async def _running(self, http: web.Request) -> ObservedContainer:
        """Find the running container of a request. Raises `TripodError`."""
        name = http.match_info["container"]
        latest = (await self._observe(self._pod(http))).latest(name)
        if latest is None or latest.state is not RuntimeState.RUNNING:
            raise _not_found(f'container not found ("{name}")')
        return latest

    async def _stream(self, http: web.Request, wanted: _Wanted) -> web.StreamResponse:
        if http.can_read_body:
            return refuse(400, "a request for a stream has no body")
        kind = http.headers.get("Upgrade", "").lower()
        if kind not in (negotiation.SPDY.lower(), "websocket"):
            return refuse(400, "unable to upgrade: missing upgrade headers in request")
        self.session_count += 1
        try:
            return await self._joined(http, wanted)
        finally:
            self.session_count -= 1

    async def _joined(self, http: web.Request, wanted: _Wanted) -> web.StreamResponse:
        answer = await upgrade(await wanted.urls(), http.method, _passed_on(http))
        if answer.wire is not None and _speaks(http, answer):
            try:
                headers = {n: answer.headers[n.lower()] for n in _ANSWERED if n.lower() in answer.headers}
                client = await take_over(http, headers)
            except BaseException:
                answer.wire.abort()
                raise
            await join(client, answer.wire, self._clock)
            # Nobody reads it: the connection is no longer HTTP's.
            return web.Response()
        if answer.wire is not None:
            answer.wire.abort()
        elif not (_is_websocket(http) and answer.status in NOT_SPOKEN):
            return _as_answered(answer)
        return await self._translated(http, wanted)

    async def _translated(self, http: web.Request, wanted: _Wanted) -> web.StreamResponse:
        """Serve a WebSocket's client in the runtime's SPDY."""
        command = wanted.streams is not None
        served = websocket.SUBPROTOCOLS if command else (negotiation.TUNNEL,)
        protocol = websocket.choose_subprotocol(_offered(http), served)
        if protocol is None:
            words = f"the runtime speaks no WebSocket, and from here are served: {', '.join(served)}"
            return refuse(400, f"unable to upgrade: {words}")
        version = PROTOCOL if command else negotiation.FORWARD_PROTOCOL
        answer = await upgrade(await wanted.urls(), "POST", _spdy_headers(version))
        if answer.wire is None:
            return _as_answered(answer)
        if answer.headers.get(negotiation.VERSION_HEADER.lower(), version) != version:
            answer.wire.abort()
            raise unreachable("it chose another protocol")
        if wanted.streams is None:
            return await serve_tunnel(http, answer.wire, protocol, self._clock)
        async with SpdyExec.over(answer.wire, wanted.streams) as spoken:
            return await serve_command(http, spoken, protocol, self._clock)


def _spdy_headers(version: str) -> Headers:
    return [("Connection", "Upgrade"), ("Upgrade", negotiation.SPDY), (negotiation.VERSION_HEADER, version)]


def _passed_on(http: web.Request) -> Headers:
    """Return what the runtime needs of a request's headers; no token is among it."""
    headers = [("Connection", "Upgrade"), ("Upgrade", http.headers["Upgrade"])]
    headers += [(name, value) for name in _NEEDED for value in http.headers.getall(name, [])]
    offered = _offered(http)
    return [*headers, (_OFFER, ", ".join(offered))] if offered else headers


def _offered(http: web.Request) -> list[str]:
    """Return the subprotocols that a client offers, without the one that is a token."""
    lines = http.headers.getall(_OFFER, [])
    offers = (offer.strip() for line in lines for offer in line.split(","))
    return [offer for offer in offers if offer and not offer.startswith(TOKEN_PROTOCOL)]


def _is_websocket(http: web.Request) -> bool:
    return http.headers.get("Upgrade", "").lower() == "websocket"


def _speaks(http: web.Request, answer: Answer) -> bool:
    """Tell whether a server that switched chose what the client can speak."""
    return not _is_websocket(http) or answer.headers.get(_OFFER.lower(), "") in _offered(http)


def _as_answered(answer: Answer) -> web.Response:
    """Tell the client what the runtime answered, and end: what it sends on is no further request."""
    status = answer.status if 400 <= answer.status < 600 and answer.status != SWITCHING else 502
    response = refuse(status, answer.text.rstrip("\n"))
    accepted = answer.headers.get(negotiation.ACCEPTED_HEADER.lower())
    if accepted:
        response.headers[negotiation.ACCEPTED_HEADER] = accepted
    return response


def _not_found(message: str) -> TripodError:
    return TripodError(message, code=Code.NOT_FOUND, reason="STREAM_TARGET_NOT_FOUND")


def query_of(http: web.Request) -> Mapping[str, Sequence[str]]:
    """Return all values of each name in a query."""
    return {name: http.query.getall(name) for name in http.query}


def refuse(status: int, message: str) -> web.Response:
    """Answer with words, and close."""
    response = web.Response(status=status, text=f"{message}\n")
    response.force_close()
    return response


def refuse_error(error: TripodError) -> web.Response:
    """Answer as the original does to what the runtime says."""
    if error.code is Code.NOT_FOUND:
        return refuse(404, error.message)
    if error.code is Code.RESOURCE_EXHAUSTED:
        response = refuse(429, error.message)
        response.headers["Retry-After"] = str(int(error.retry_after_seconds or 5))
        return response
    return refuse(500, error.message)
