"""The proxy's HTTP endpoints: `/healthz` and `/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from services.common import gauges as gauge_text
from services.common import process
from services.common.httpserver import new_application

GAUGES = {
    "kubeproxy_services": "Services that are known.",
    "kubeproxy_endpoints": "Endpoints that get traffic.",
    "kubeproxy_sync_commits_total": "Transactions that the kernel took since the start.",
    "kubeproxy_rule_repairs_total": "Times that rules others had changed were put back.",
    **process.HELP,
}


def application(
    healthy: Callable[[], str | None], gauges: Callable[[], Mapping[str, float]]
) -> web.Application:
    """Make the application."""
    app = new_application(healthy=healthy)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=gauge_text.page(GAUGES, gauges()), content_type="text/plain", charset="utf-8"
        )

    app.router.add_get("/metrics", metrics)
    return app
