"""The port that the API server and others call: TLS, and only who may is let in.

Source: kubernetes pkg/kubelet/server/server.go. What it can be told not to serve (`/logs/`,
profiles, flags of the log) is not served: those show or change the node beyond its pods.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from services.common.logs import get_logger
from services.common.owners import address_in_use
from services.kubelet.web.checkpoint import CheckpointRoute
from services.kubelet.web.logs import LogRoutes
from services.kubelet.web.pages import Pages, add_pages
from services.kubelet.web.streams import StreamRoutes
from services.kubelet.web.traffic import Traffic

log = get_logger(__name__)
_END_SECONDS = 2.0
# A command comes in the request's line, a token of 64 KiB in a header. Go takes a head of 1 MiB in all.
_LINE_BYTES = 1 << 20
_FIELD_BYTES = 96 << 10
# As the original's, by Go's defaults: a client that vanished is noticed after 150 s, also by a command that
# neither says nor is told anything meanwhile. The kernel's default are two hours.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 9))


def secure_application(
    guard: Middleware,
    pages: Pages,
    *,
    logs: LogRoutes,
    streams: StreamRoutes,
    checkpoint: CheckpointRoute,
    traffic: Traffic,
) -> web.Application:
    """Make the application."""
    app = web.Application(client_max_size=1 << 20, middlewares=[traffic.count, guard, _get_only])
    add_pages(app.router, pages)
    logs.add_to(app.router)
    streams.add_to(app.router)
    checkpoint.add_to(app.router)
    return app


@web.middleware
async def _get_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a method that is not served as the original does."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        return web.Response(
            status=405, text="Method Not Allowed", headers={"Allow": ", ".join(sorted(error.allowed_methods))}
        )
    except web.HTTPNotFound:
        return web.Response(status=404, text="404 page not found\n")


class SecureServer:
    """Serves the application with TLS."""

    def __init__(self, application: web.Application, context: ssl.SSLContext, host: str, port: int) -> None:
        # Without cancellation a handler that waits for its stream would not learn that the client has gone.
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=_END_SECONDS,
            keepalive_timeout=90.0,
            max_line_size=_LINE_BYTES,
            max_field_size=_FIELD_BYTES,
        )
        self._context = context
        self._listening: asyncio.Server | None = None
        self._host = host
        self.port = port

    async def start(self) -> None:
        """Listen. Port 0 picks one, then `port` says which. Raises `ADDRESS_IN_USE`."""
        await self._runner.setup()
        assert self._runner.server is not None, "it is made by `setup`"
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                self._runner.server, self._host or None, self.port, ssl=self._context
            )
        except OSError as error:
            await self._runner.cleanup()
            raise address_in_use(f"{self._host}:{self.port}") from error
        for listening in self._listening.sockets:
            # Connections that are accepted have their listener's options.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                listening.setsockopt(socket.IPPROTO_TCP, option, value)
        self.port = self._listening.sockets[0].getsockname()[1]
        log.info("Started HTTPS server", address=f"{self._host}:{self.port}")

    async def stop(self) -> None:
        """Stop listening and end what runs, within some seconds."""
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()
