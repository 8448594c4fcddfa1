"""The health check ports of services, over HTTP on every address. Implements `HealthPorts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from services.common.logs import get_logger
from services.proxy.core.health import PortHealth, port_answer

log = get_logger(__name__)
_WEIGHT = "X-Load-Balancing-Endpoint-Weight"


class HttpHealthPorts:
    """One application on many ports. `proxy_healthy` tells whether rules keep up."""

    def __init__(self, proxy_healthy: Callable[[], bool]) -> None:
        self._proxy_healthy = proxy_healthy
        self._wanted: Mapping[int, PortHealth] = {}
        self._sites: dict[int, web.TCPSite] = {}
        self._runner: web.AppRunner | None = None
        self.faults: dict[int, str] = {}

    async def serve(self, wanted: Mapping[int, PortHealth]) -> None:
        """Listen on exactly these ports; one that somebody else has is told, and tried again next time."""
        self._wanted = wanted
        for port in self._sites.keys() - wanted.keys():
            await self._sites.pop(port).stop()
        self.faults = {port: fault for port, fault in self.faults.items() if port in wanted}
        for port in sorted(wanted.keys() - self._sites.keys()):
            await self._listen(port)

    async def _listen(self, port: int) -> None:
        if self._runner is None:
            application = web.Application(client_max_size=1 << 10)
            application.router.add_get("/{path:.*}", self._answer)
            self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
            await self._runner.setup()
        site = web.TCPSite(self._runner, "0.0.0.0", port)  # load balancers ask from outside
        try:
            await site.start()
        except OSError as error:
            if port not in self.faults:
                log.warning("Could not serve a health check port", port=port, error=str(error))
            self.faults[port] = str(error)
            # The runner knows it by now.
            await site.stop()
            return
        self.faults.pop(port, None)
        self._sites[port] = site

    async def _answer(self, request: web.Request) -> web.Response:
        own = request.transport.get_extra_info("sockname") if request.transport else None
        found = self._wanted.get(own[1]) if own else None
        if found is None:
            return web.Response(status=404)
        status, body = port_answer(found, proxy_healthy=self._proxy_healthy())
        headers = {_WEIGHT: str(found.count), "X-Content-Type-Options": "nosniff"}
        return web.json_response(body, status=status, headers=headers)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner, self._sites = None, {}
