"""Serve commands' streams and forwarded ports over SPDY and WebSocket, at URLs that work once.

A stream ends when its command does (status, then the protocol's goodbye), when its client vanishes, or after
four hours without a byte; the session is closed in each case. While a command does not read its input the
socket is not read either, so a client's end shows only when we write: hence the pings. Their answers are not
awaited, because a client may be blocked on its own output.

The token is a secret: it is never logged, and requests are not either.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import WSCloseCode, web

from services.common.clock import Clock, SystemClock
from services.common.errors import Code, TripodError
from services.common.logs import get_logger
from services.common.remotecommand import negotiation
from services.common.remotecommand.negotiation import Choice, Refusal, Transport
from services.common.spdy.errors import PeerGoneError
from services.common.spdy.groups import first_of
from services.common.spdy.messages import WebSocketWire
from services.common.spdy.multiplex import Multiplexer
from services.common.spdy.upgrade import take_over
from services.kubelet.cri.streaming.channels import ChannelCommand, Messages
from services.kubelet.cri.streaming.command import run_command
from services.kubelet.cri.streaming.forward import ChannelForward, SpdyForward
from services.kubelet.cri.streaming.session import (
    ExecBackend,
    ForwardBackend,
    ForwardRequest,
    StreamRequest,
)
from services.kubelet.cri.streaming.spdycommand import SpdyCommand, collect, expected_streams
from services.kubelet.cri.streaming.tokens import TokenStore

log = get_logger(__name__)

TOKEN_BYTES: Final = 12
MESSAGE_BYTES: Final = 1 << 20
CLOSE_SECONDS: Final = 2.0

Request = StreamRequest | ForwardRequest


class HttpStreamingServer:
    """Implements the CRI server's `StreamingServer`; `port` 0 lets the kernel choose.

    At most `session_limit` streams run at a time; more are answered with 429. Bind to loopback: whoever has
    a URL has the command.
    """

    def __init__(
        self,
        backend: ExecBackend,
        forwarding: ForwardBackend,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Clock | None = None,
        session_limit: int = 100,
    ) -> None:
        self._backend = backend
        self._forwarding = forwarding
        self._host = host
        self._port = port
        self._clock = clock or SystemClock()
        self._session_limit = session_limit
        self._tokens: TokenStore[tuple[str, Request]] = TokenStore(
            self._clock, lambda: secrets.token_urlsafe(TOKEN_BYTES)
        )
        self._running: set[asyncio.Task[object]] = set()
        application = web.Application(client_max_size=MESSAGE_BYTES)
        application.router.add_route("*", "/{verb:exec|attach|portforward}/{token}", self._serve)
        # Without cancellation a handler that waits for its command would not learn that the client has gone.
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_SECONDS
        )

    @property
    def base_url(self) -> str:
        """Scheme, host and port; the port is known after `start`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def session_count(self) -> int:
        """How many streams run."""
        return len(self._running)

    async def start(self) -> None:
        """Listen. Raises `TripodError` ADDRESS_IN_USE."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as err:
            await self._runner.cleanup()
            raise TripodError(
                f"Cannot listen on {self._host}:{self._port}: {err.strerror}",
                code=Code.FAILED_PRECONDITION,
                reason="ADDRESS_IN_USE",
                metadata={"address": f"{self._host}:{self._port}"},
            ) from err
        self._port = self._runner.addresses[0][1]
        log.info("Started streaming server", address=f"{self._host}:{self._port}")

    async def stop(self) -> None:
        """End every stream and stop listening, within a few seconds."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._runner.cleanup()

    def exec_url(self, request: StreamRequest) -> str:
        """Return a URL that runs the command once, within a minute.

        Raises `TripodError` TOO_MANY_STREAMS_WAITING.
        """
        return self._url("exec", request)

    def attach_url(self, request: StreamRequest) -> str:
        """Return a URL that attaches once, within a minute. Raises as `exec_url`."""
        return self._url("attach", request)

    def forward_url(self, request: ForwardRequest) -> str:
        """Return a URL that forwards ports once, within a minute. Raises as `exec_url`."""
        return self._url("portforward", request)

    def _url(self, verb: str, request: Request) -> str:
        return f"{self.base_url}/{verb}/{self._tokens.put((verb, request))}"

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        verb = http.match_info["verb"]
        choice = _choose(http, forward=verb == "portforward")
        if isinstance(choice, Refusal):
            return _refuse(choice)
        if len(self._running) >= self._session_limit:
            return _refuse(Refusal(429, f"{self._session_limit} streams are open; try again later"))
        found = self._tokens.take(http.match_info["token"])
        if found is None or found[0] != verb:
            return _refuse(Refusal(404, "No stream waits here: a URL works once, for a minute"))
        async with self._registered():
            if choice.transport is Transport.SPDY:
                return await self._serve_spdy(http, choice, found[1])
            return await self._serve_websocket(http, choice, found[1])

    @asynccontextmanager
    async def _registered(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        finally:
            self._running.discard(task)

    async def _serve_spdy(self, http: web.Request, choice: Choice, request: Request) -> web.StreamResponse:
        wire = await take_over(
            http, {"Upgrade": negotiation.SPDY, negotiation.VERSION_HEADER: choice.protocol}
        )
        try:
            well = await _until_gone(self._multiplexed(Multiplexer(wire), choice, request), request)
            await wire.linger()
            if well:
                await wire.drained()
        finally:
            wire.abort()
        # Nobody reads it: the connection is no longer HTTP's.
        return web.Response()

    async def _serve_websocket(
        self, http: web.Request, choice: Choice, request: Request
    ) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            protocols=(choice.protocol,),
            max_msg_size=MESSAGE_BYTES,
            timeout=CLOSE_SECONDS,
            compress=False,
        )
        await socket.prepare(http)
        well = await _until_gone(self._on_websocket(socket, choice, request), request)
        await socket.close(code=WSCloseCode.OK if well else WSCloseCode.GOING_AWAY)
        return socket

    async def _on_websocket(self, socket: web.WebSocketResponse, choice: Choice, request: Request) -> None:
        if choice.transport is Transport.TUNNEL:
            await self._multiplexed(Multiplexer(WebSocketWire(socket)), choice, request)
            return
        messages = Messages(socket, choice.protocol)
        if isinstance(request, ForwardRequest):
            await ChannelForward(messages, self._forwarding, request, self._clock).run()
        else:
            await run_command(ChannelCommand(messages), self._backend, request, self._clock)

    async def _multiplexed(self, link: Multiplexer, choice: Choice, request: Request) -> None:
        if isinstance(request, ForwardRequest):
            await link.serve(SpdyForward(link, self._forwarding, request, self._clock).run())
        else:
            await link.serve(self._spdy_command(link, choice.protocol, request))

    async def _spdy_command(self, link: Multiplexer, protocol: str, request: StreamRequest) -> None:
        streams = await collect(link, expected_streams(request, protocol))
        await run_command(SpdyCommand(link, streams, protocol), self._backend, request, self._clock)


async def _until_gone(serving: Awaitable[None], request: Request) -> bool:
    """Serve to the end; returns False when the client went before."""
    target = request.sandbox_id if isinstance(request, ForwardRequest) else request.container_id
    try:
        await serving
    except PeerGoneError as err:
        log.info("Ended stream of a client that went", container_id=target, cause=str(err))
        return False
    except BaseExceptionGroup as errors:
        first = first_of(errors)
        if not isinstance(first, PeerGoneError):
            raise
        log.info("Ended stream of a client that went", container_id=target, cause=str(first))
        return False
    return True


def _choose(http: web.Request, *, forward: bool) -> Choice | Refusal:
    if http.can_read_body:
        return Refusal(400, "A request for a stream has no body")
    return negotiation.choose(
        upgrade=http.headers.get("Upgrade", ""),
        forward=forward,
        versions=_listed(http, negotiation.VERSION_HEADER),
        subprotocols=_listed(http, "Sec-WebSocket-Protocol"),
    )


def _refuse(refusal: Refusal) -> web.Response:
    """Say why a request is none of ours, and close: what a refused client sends on is no further request.

    (CVE-2020-8559, CVE-2018-1002105: proxies took such bytes for the upgraded stream.)
    """
    response = web.Response(status=refusal.status, text=f"{refusal.text}\n")
    response.force_close()
    if refusal.status == 426:
        response.headers["Upgrade"] = f"{negotiation.SPDY}, websocket"
    for version in refusal.accepted:
        response.headers.add(negotiation.ACCEPTED_HEADER, version)
    return response


def _listed(http: web.Request, header: str) -> list[str]:
    lines = http.headers.getall(header, [])
    return [offer.strip() for line in lines for offer in line.split(",") if offer.strip()]
