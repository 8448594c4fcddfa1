"""Serve commands' streams over WebSocket at URLs that work once.

A stream ends when its command does (status document, then a normal close), when its client vanishes, or
after four hours without a byte; the session is closed in each case. Nothing is buffered here beyond one
message per direction: a client that does not read stops the command's output, a command that does not read
stops the client's input. While the input is stopped the socket is not read, so a client's end shows only
when we write: hence the pings. Their answers are not awaited, because a client may be blocked on its own
output.

The token is a secret: it is never logged, and requests are not either.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import WSCloseCode, WSMsgType, web

from services.common.clock import Clock, SystemClock
from services.common.errors import Code, TripodError
from services.common.logs import get_logger
from services.kubelet.cri.streaming import websocket
from services.kubelet.cri.streaming.session import ExecBackend, ExecSession, ExecStream, StreamRequest
from services.kubelet.cri.streaming.tokens import TokenStore
from services.kubelet.cri.streaming.websocket import Channel, ChannelError, StdinData, StdinEnd, TerminalSize

log = get_logger(__name__)

TOKEN_BYTES: Final = 12
MESSAGE_BYTES: Final = 1 << 20
PING_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 4 * 3600.0
CLOSE_SECONDS: Final = 2.0

_OUTPUTS: Final = {ExecStream.STDOUT: Channel.STDOUT, ExecStream.STDERR: Channel.STDERR}


class ClientGoneError(Exception):
    """The client has closed its side, or broke the protocol."""


class HttpStreamingServer:
    """Implements the CRI server's `StreamingServer`; `port` 0 lets the kernel choose.

    At most `session_limit` streams run at a time; more are answered with 429. Bind to loopback: whoever has
    a URL has the command.
    """

    def __init__(
        self,
        backend: ExecBackend,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Clock | None = None,
        session_limit: int = 100,
    ) -> None:
        self._backend = backend
        self._host = host
        self._port = port
        self._clock = clock or SystemClock()
        self._session_limit = session_limit
        self._tokens: TokenStore[StreamRequest] = TokenStore(
            self._clock, lambda: secrets.token_urlsafe(TOKEN_BYTES)
        )
        self._running: set[asyncio.Task[object]] = set()
        application = web.Application(client_max_size=MESSAGE_BYTES)
        application.router.add_route("*", "/{verb:exec|attach}/{token}", self._serve)
        # Without cancellation a handler that waits for its command would not learn that the client has gone.
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_SECONDS
        )

    @property
    def base_url(self) -> str:
        """Scheme, host and port; the port is known after `start`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

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
        return f"{self.base_url}/exec/{self._tokens.put(request)}"

    def attach_url(self, request: StreamRequest) -> str:
        """Return a URL that attaches once, within a minute. Raises as `exec_url`."""
        return f"{self.base_url}/attach/{self._tokens.put(request)}"

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        subprotocol = websocket.choose_subprotocol(_offered(http))
        if (refusal := _refusal(http, subprotocol)) is not None or subprotocol is None:
            return refusal or web.Response(status=400)
        if len(self._running) >= self._session_limit:
            return web.Response(status=429, text=f"{self._session_limit} streams are open; try again later\n")
        request = self._tokens.take(http.match_info["token"])
        if request is None:
            return web.Response(status=404, text="No stream waits here: a URL works once, for a minute\n")
        socket = web.WebSocketResponse(
            protocols=(subprotocol,),
            max_msg_size=MESSAGE_BYTES,
            timeout=CLOSE_SECONDS,
            compress=False,
        )
        async with self._registered():
            await socket.prepare(http)
            await self._stream(_Peer(socket, subprotocol), request)
        return socket

    @asynccontextmanager
    async def _registered(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        finally:
            self._running.discard(task)

    async def _stream(self, peer: _Peer, request: StreamRequest) -> None:
        try:
            await peer.send(Channel.STATUS, await self._run(peer, request))
        except ClientGoneError as err:
            log.info("Ended stream of a client that went", container_id=request.container_id, cause=str(err))
            await peer.close(WSCloseCode.GOING_AWAY)
            return
        await peer.close(WSCloseCode.OK)

    async def _run(self, peer: _Peer, request: StreamRequest) -> bytes:
        """Run the command between its streams; return the status document."""
        try:
            session = await self._backend.open(request)
        except TripodError as err:
            return websocket.failure_status(err.message)
        try:
            # An empty message tells the client that the streams are up, as Kubernetes' own server does.
            await peer.send(Channel.STDOUT, b"")
            return websocket.exit_status(await self._join(peer, session, request))
        except TripodError as err:
            return websocket.failure_status(err.message)
        finally:
            await session.close()

    async def _join(self, peer: _Peer, session: ExecSession, request: StreamRequest) -> int:
        """Move bytes both ways until the command ends; return its exit code."""
        try:
            async with asyncio.TaskGroup() as group:
                helpers = (
                    group.create_task(_feed(peer, session, wanted=request.stdin)),
                    group.create_task(self._watch(peer)),
                )
                async for stream, data in session.output():
                    await peer.send_stream(_OUTPUTS[stream], data)
                exit_code = await session.exit_code()
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as group_error:
            # One failure ends the group; what follows from it is of no interest.
            raise _first(group_error) from group_error
        return exit_code

    async def _watch(self, peer: _Peer) -> None:
        """Write now and then, so that a lost connection shows; give up on one that is idle for hours."""
        seen, quiet_since = peer.message_count, self._clock.monotonic()
        while True:
            await self._clock.sleep(PING_SECONDS)
            await peer.ping()
            if peer.message_count != seen:
                seen, quiet_since = peer.message_count, self._clock.monotonic()
            if self._clock.monotonic() - quiet_since >= IDLE_SECONDS:
                raise ClientGoneError("idle for too long")


class _Peer:
    """The client's side of a stream. `message_count` grows with every message either way."""

    def __init__(self, socket: web.WebSocketResponse, subprotocol: str) -> None:
        self._socket = socket
        self._subprotocol = subprotocol
        self.message_count = 0

    async def inputs(self) -> AsyncIterator[websocket.Input]:
        """Yield what the client sends. Raises `ClientGoneError` at its end."""
        while True:
            message = await self._socket.receive()
            self.message_count += 1
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                raise ClientGoneError(message.type.name)
            data = message.data.encode() if isinstance(message.data, str) else message.data
            try:
                decoded = websocket.decode_input(data, subprotocol=self._subprotocol)
            except ChannelError as err:
                raise ClientGoneError(str(err)) from err
            if decoded is not None:
                yield decoded

    async def send(self, channel: Channel, data: bytes) -> None:
        """Send one message; waits while the client does not read. Raises `ClientGoneError`."""
        self.message_count += 1
        try:
            await self._socket.send_bytes(websocket.encode(channel, data))
        except ConnectionError as err:
            raise ClientGoneError(str(err)) from err

    async def send_stream(self, channel: Channel, data: bytes) -> None:
        """Send data of any length. Raises `ClientGoneError`."""
        for start in range(0, len(data), websocket.FRAME_BYTES):
            await self.send(channel, data[start : start + websocket.FRAME_BYTES])

    async def ping(self) -> None:
        """Write a ping. Raises `ClientGoneError`."""
        try:
            await self._socket.ping()
        except ConnectionError as err:
            raise ClientGoneError(str(err)) from err

    async def close(self, code: int) -> None:
        """Say goodbye and wait two seconds at most for the answer."""
        await self._socket.close(code=code)


async def _feed(peer: _Peer, session: ExecSession, *, wanted: bool) -> None:
    """Pass the client's input on until the client ends; `wanted` is false for a command without input."""
    async for message in peer.inputs():
        try:
            await _pass(message, session, wanted=wanted)
        except ConnectionError:
            # As `yes | head -1`: the command reads no more, but what it wrote must still reach the client.
            wanted = False


async def _pass(message: websocket.Input, session: ExecSession, *, wanted: bool) -> None:
    match message:
        case StdinData(data) if wanted:
            await session.write_stdin(data)
        case StdinEnd() if wanted:
            await session.close_stdin()
        case TerminalSize(width, height):
            await session.resize(width, height)
        case _:
            pass


def _refusal(http: web.Request, subprotocol: str | None) -> web.Response | None:
    """Say why a request is no WebSocket of ours; the token stays good for a proper one."""
    upgrade = http.headers.get("Upgrade", "").lower()
    if upgrade == "websocket" and subprotocol is not None:
        return None
    speak = f"use WebSocket with subprotocol {' or '.join(websocket.SUBPROTOCOLS)}"
    if upgrade.startswith("spdy"):
        return web.Response(
            status=426, headers={"Upgrade": "websocket"}, text=f"SPDY is not served; {speak}\n"
        )
    if upgrade == "websocket":
        return web.Response(status=400, text=f"None of the offered subprotocols is served; {speak}\n")
    return web.Response(status=426, headers={"Upgrade": "websocket"}, text=f"An upgrade is needed; {speak}\n")


def _offered(http: web.Request) -> list[str]:
    lines = http.headers.getall("Sec-WebSocket-Protocol", [])
    return [offer.strip() for line in lines for offer in line.split(",")]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
