"""An HTTP server on loopback as every service has it: health, and an end within its time."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from aiohttp import web

from services.common.logs import get_logger
from services.common.owners import address_in_use

log = get_logger(__name__)


def new_application(*, healthy: Callable[[], str | None]) -> web.Application:
    """Make an application that answers `/healthz`: 200 `ok`, or 503 with the reason `healthy` returns."""

    async def healthz(_: web.Request) -> web.Response:
        reason = healthy()
        return web.Response(
            text="ok\n" if reason is None else f"{reason}\n", status=200 if reason is None else 503
        )

    application = web.Application(client_max_size=1 << 20, middlewares=[_refuse_foreign_hosts])
    application.router.add_get("/healthz", healthz)
    return application


@web.middleware
async def _refuse_foreign_hosts(request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
    """Refuse a name that is not loopback's, so that no web page can read us by DNS rebinding."""
    if not _loopback(request.headers.get("Host", "")):
        return web.Response(status=421, text="This name is not served; use 127.0.0.1 or localhost\n")
    answer: web.StreamResponse = await handler(request)  # type: ignore[misc]  # aiohttp types handlers loosely
    return answer


def _loopback(host: str) -> bool:
    """Tell whether a Host header names loopback, with or without a port. One that is absent names nobody."""
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name = host
    elif not port.isdigit():
        return False
    if name.lower() == "localhost":
        return True
    bracketed = name.startswith("[") and name.endswith("]")
    try:
        return ip_address(name[1:-1] if bracketed else name).is_loopback
    except ValueError:
        return False


class HttpServer:
    """Serves one application on one address."""

    def __init__(self, application: web.Application, host: str, port: int) -> None:
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=2.0, keepalive_timeout=30.0
        )
        self._host = host
        self.port = port

    async def start(self) -> None:
        """Listen. Port 0 picks one, then `port` says which. Raises `ADDRESS_IN_USE`."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise address_in_use(f"{self._host}:{self.port}") from error
        self.port = self._runner.addresses[0][1]
        log.info("Started HTTP server", address=f"{self._host}:{self.port}")

    async def stop(self) -> None:
        """Stop listening and end what runs, within two seconds."""
        await self._runner.cleanup()
