"""The proxy's HTTP endpoints: `/healthz` and `/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from services.common import gauges as gauge_text
from services.common import process
from services.common.httpserver import new_application

REPAIRS = "kubeproxy_rule_repairs_total"
KINDS = ("table", "chains", "elements")
GAUGES = {
    REPAIRS: "Times that rules others had changed were put back.",
    "kubeproxy_services": "Services that are known.",
    "kubeproxy_endpoints": "Endpoints that get traffic.",
    "kubeproxy_sync_commits_total": "Transactions that the kernel took since the start.",
    **process.HELP,
}


def application(
    healthy: Callable[[], str | None],
    gauges: Callable[[], Mapping[str, float]],
    repairs: Callable[[], Mapping[str, int]],
) -> web.Application:
    """Make the application."""
    app = new_application(healthy=healthy)

    async def metrics(_: web.Request) -> web.Response:
        counts = repairs()
        by_kind = {f'{REPAIRS}{{kind="{kind}"}}': float(counts.get(kind, 0)) for kind in KINDS}
        body = gauge_text.page(GAUGES, {**gauges(), **by_kind})
        return web.Response(body=body, content_type="text/plain", charset="utf-8")

    app.router.add_get("/metrics", metrics)
    return app
